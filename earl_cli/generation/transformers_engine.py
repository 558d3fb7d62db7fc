"""The engine that samples with the transformers model itself: every prompt once, then all completions side by side.

A completion depends on its own seed: its random numbers are its own, its prompt runs alone, and the lanes beside it
never enter its sums. What company can still change is the last bit of a logit, where another number of rows gets
another matrix kernel, and a bit decides only where two ids are as good as equal. On a CPU in float32, batches below
eight are filled up to four or eight lanes, from where on the kernels round alike, so lanes of one grid agree bit for
bit; lanes of different grids are masked, which may cost the last bit, as may another batch size on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import ModelError
from earl_cli.generation.decoder import Decoder
from earl_cli.generation.engine import (
    MAX_TEXT_TOKENS,
    Completion,
    OnCompletion,
    OnProgress,
    SamplingRequest,
    SequenceLimits,
    start_of,
)
from earl_cli.generation.sampling import sample_tokens, uniforms
from earl_cli.models.device import free_memory
from earl_cli.tokens.grammar import FreeState, GrammarState
from earl_cli.tokens.layout import SequenceLayout

if TYPE_CHECKING:
    from transformers import Emu3ForCausalLM


@dataclass
class _Lane:
    """A completion under way: ``prompt`` tokens were given, ``length`` of its own are cached, ``pending`` come next."""

    request: int
    index: int
    state: GrammarState | FreeState
    prompt: int
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    length: int = 0
    cut: bool = False

    @property
    def over(self) -> bool:
        return self.cut or self.state.done

    def take(self, token: int, logprob: float, *, sampled: bool) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.sampled.append(sampled)
        self.pending.append(token)
        self.state = self.state.advance(token)

    def take_forced(self) -> None:
        """Everything that the grammar leaves no choice about, up to the next choice or eos."""
        while not self.state.done and (token := self.state.choices().forced) is not None:
            self.take(token, 0.0, sampled=False)


@dataclass(frozen=True)
class _Job:
    """A request with the indices of the completions to draw, and the tokens that each will hold in the cache."""

    request: int
    indices: tuple[int, ...]
    prompt: tuple[int, ...]
    state: GrammarState | FreeState
    room: int


class TransformersEngine:
    """Samples from an `Emu3ForCausalLM` where it is, in the type it has; its weights may change between two calls.

    ``max_batch_tokens``: how many tokens the cache may hold at once; None takes half of the free memory.
    ``max_text_tokens`` limits the text before a picture in the modes that have some, ``max_positions`` a prompt and its
    completion together, below what the model has.
    Raises ModelError if the model's vocabulary isn't the layout's.
    """

    def __init__(
        self,
        model: Emu3ForCausalLM,
        layout: SequenceLayout,
        *,
        max_batch_tokens: int | None = None,
        max_text_tokens: int = MAX_TEXT_TOKENS,
        max_positions: int | None = None,
    ) -> None:
        if model.config.vocab_size != layout.vocabulary.size:
            what = f"the model has {model.config.vocab_size} ids, the layout's vocabulary {layout.vocabulary.size}"
            raise ModelError(what, hint="model and tokenizer belong to different models")
        self.model, self.layout = model, layout
        self.max_batch_tokens, self.max_text_tokens = max_batch_tokens, max_text_tokens
        self.positions = min(int(model.config.max_position_embeddings), max_positions or 1 << 62)

    def generate(
        self,
        requests: Sequence[SamplingRequest],
        sampling: SamplingParams,
        on_progress: OnProgress | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """For each request one completion for each seed, in order.

        ``on_progress`` is called after every step. Raises InputError for a prompt that isn't one or is too long.
        """
        jobs = [self._job(index, request) for index, request in enumerate(requests)]
        done: dict[tuple[int, int], Completion] = {}
        expected = {job.request: job.room - len(job.prompt) for job in jobs}
        rest = sum(expected[job.request] * len(job.indices) for job in jobs)
        produced = 0
        with torch.inference_mode():
            for batch in self._batches(jobs):
                lanes = [
                    _Lane(
                        job.request,
                        index,
                        job.state,
                        len(job.prompt),
                        self._uniforms(requests[job.request].seeds[index]),
                    )
                    for job in batch
                    for index in job.indices
                ]
                rest -= sum(expected[lane.request] for lane in lanes)
                for ended in self._run(batch, lanes, sampling):
                    for lane in ended:
                        done[lane.request, lane.index] = completion = _completion(lane)
                        if on_completion is not None:
                            on_completion(lane.request, lane.index, completion)
                    if on_progress is not None:
                        now = produced + sum(len(lane.ids) for lane in lanes)
                        on_progress(now, now + rest + sum(0 if lane.over else lane.state.expected for lane in lanes))
                produced += sum(len(lane.ids) for lane in lanes)
        return [[done[i, j] for j in range(len(request.seeds))] for i, request in enumerate(requests)]

    def _job(self, index: int, request: SamplingRequest) -> _Job:
        start = start_of(
            request, self.layout, SequenceLimits(self.max_text_tokens, self.positions), f"request {index + 1}"
        )
        return _Job(index, tuple(range(len(request.seeds))), request.prompt, start.state, start.room)

    def _uniforms(self, seed: int) -> list[float]:
        numbers: list[float] = uniforms(seed, self.positions).tolist()
        return numbers

    def _batches(self, jobs: Sequence[_Job]) -> Iterable[list[_Job]]:
        """Jobs in batches within the budget of tokens, those of one length together; at least one completion each."""
        budget = self.max_batch_tokens or self._budget()
        batch: list[_Job] = []
        lanes = longest = 0
        for job in sorted(jobs, key=lambda job: (job.room, len(job.prompt))):
            left = list(job.indices)
            while left:
                longest = max(longest, job.room)
                fitting = min(len(left), budget // longest - lanes)
                if fitting < 1 and batch:
                    yield batch
                    batch, lanes, longest = [], 0, 0
                    continue
                taken = left[: max(1, fitting)]
                batch.append(replace(job, indices=tuple(taken)))
                lanes += len(taken)
                left = left[len(taken) :]
        if batch:
            yield batch

    def _budget(self) -> int:
        config, weight = self.model.config, self.model.model.embed_tokens.weight
        width = int(self.model.model.layers[0].self_attn.head_dim)
        bytes_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * weight.element_size()
        free = free_memory(weight.device)
        return max(1, (2_000_000_000 if free is None else free) // 2 // int(bytes_per_token))

    def _run(self, batch: Sequence[_Job], lanes: list[_Lane], sampling: SamplingParams) -> Iterable[list[_Lane]]:
        """Fills ``lanes`` in place; yields after every token those that it ended."""
        active = lanes
        decoder = Decoder(self.model, _filled(len(lanes)), max(job.room - len(job.prompt) for job in batch))
        hidden = self._prefill(decoder, batch, lanes)
        while active:
            _sample(active, hidden, decoder, sampling)
            for lane in active:
                lane.take_forced()
                full = lane.prompt + len(lane.ids) >= self.positions
                lane.cut = not lane.state.done and (full or lane.state.longest == 0)
            yield [lane for lane in active if lane.over]
            going = [i for i, lane in enumerate(active) if not lane.over]
            if not going:
                return
            if len(going) < len(active):
                active = [active[i] for i in going]
                decoder.keep([*going, *[going[-1]] * (_filled(len(going)) - len(going))])
            fed = [*active, *[active[-1]] * (decoder.lanes - len(active))]
            hidden = decoder.step([lane.pending for lane in fed], [lane.length for lane in fed])
            for lane in active:
                lane.length += len(lane.pending)
                lane.pending = []

    def _prefill(self, decoder: Decoder, batch: Sequence[_Job], lanes: Sequence[_Lane]) -> Tensor:
        """Runs every prompt, with what is forced after it, once; returns Float[decoder.lanes, hidden]."""
        rows: list[Tensor] = []
        for job in batch:
            siblings = lanes[len(rows) : len(rows) + len(job.indices)]
            for lane in siblings:
                lane.take_forced()
            filling = decoder.lanes - len(lanes) if job is batch[-1] else 0
            hidden = decoder.prefill([*job.prompt, *siblings[0].pending], len(siblings) + filling)
            rows += [hidden] * (len(siblings) + filling)
            for lane in siblings:
                lane.pending = []
        return torch.stack(rows)


def _sample(active: Sequence[_Lane], hidden: Tensor, decoder: Decoder, sampling: SamplingParams) -> None:
    """Draws one token for every lane, with only those rows of the head that its grammar allows."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, lane in enumerate(active):
        choices = lane.state.choices()
        groups.setdefault((choices.start, choices.stop), []).append(i)
    for (start, stop), members in groups.items():
        logits = decoder.logits(hidden, start, stop)
        if len(members) < len(logits):
            logits = logits[members]
        uniform = torch.tensor([active[i].uniforms[len(active[i].ids)] for i in members], dtype=torch.float64)
        columns, logprobs = sample_tokens(logits, uniform, sampling)
        for i, column, logprob in zip(members, columns.tolist(), logprobs.tolist(), strict=True):
            if math.isnan(logprob):
                raise ModelError(
                    "the model's scores are no numbers", hint="its weights are damaged, or were trained so"
                )
            active[i].take(start + column, logprob, sampled=True)


def _filled(lanes: int) -> int:
    """Lanes that a batch is filled up to, so that small batches meet the same matrix kernels."""
    return 4 if lanes <= 4 else max(8, lanes)


def _completion(lane: _Lane) -> Completion:
    return Completion(
        np.array(lane.ids, dtype=np.int64),
        np.array(lane.logprobs, dtype=np.float32),
        np.array(lane.sampled, dtype=np.bool_),
        lane.state.done,
    )
