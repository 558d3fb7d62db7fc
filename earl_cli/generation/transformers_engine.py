"""The engine transformers: samples with the transformers model itself, every prompt once, then a batch of completions.

A completion doesn't depend on its batch: it has its own random numbers, its prompt runs alone, and other sequences
don't enter its sums. The batch size can change only the last bit of a logit, by another matrix kernel, which matters
only where two ids are almost equally likely. On a CPU in float32, batches below eight are padded to four or eight
sequences, from which on kernels round alike, so sequences of one grid agree bit for bit. Sequences of different grids
are masked, which may change the last bit, as may another batch size on a GPU.
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
    prepare_request,
)
from earl_cli.generation.sampling import sample_tokens, uniforms
from earl_cli.models.device import free_memory
from earl_cli.tokens.grammar import FreeState, GrammarState
from earl_cli.tokens.layout import SequenceLayout

if TYPE_CHECKING:
    from transformers import Emu3ForCausalLM


@dataclass
class _Sequence:
    """An unfinished completion after ``prompt`` tokens: ``length`` of its tokens are cached, ``pending`` come next."""

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
    truncated: bool = False

    @property
    def finished(self) -> bool:
        return self.truncated or self.state.done

    def append(self, token: int, logprob: float, *, sampled: bool) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.sampled.append(sampled)
        self.pending.append(token)
        self.state = self.state.advance(token)

    def append_forced(self) -> None:
        """Append all forced tokens, up to the next one to be sampled or eos."""
        while not self.state.done and (token := self.state.allowed().forced) is not None:
            self.append(token, 0.0, sampled=False)


@dataclass(frozen=True)
class _RequestPart:
    """Some completions of a request, by their indices; each is expected to take ``expected_length`` tokens of cache."""

    request: int
    indices: tuple[int, ...]
    prompt: tuple[int, ...]
    state: GrammarState | FreeState
    expected_length: int


class TransformersEngine:
    """Samples from an `Emu3ForCausalLM` on its device, in its dtype; its weights may change between two calls.

    ``max_batch_tokens`` is the size of the cache in tokens; None takes half of the free memory. ``max_text_tokens``
    limits the text before an image in reasoning and mixed mode, ``max_positions`` prompt and completion together.
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

        ``on_progress`` is called after every step. Raises InputError for a prompt that is invalid or too long.
        """
        parts = [self._prepare(index, request) for index, request in enumerate(requests)]
        done: dict[tuple[int, int], Completion] = {}
        expected = {part.request: part.expected_length - len(part.prompt) for part in parts}
        rest = sum(expected[part.request] * len(part.indices) for part in parts)
        produced = 0
        with torch.inference_mode():
            for batch in self._batches(parts):
                sequences = [
                    _Sequence(
                        part.request,
                        index,
                        part.state,
                        len(part.prompt),
                        self._uniforms(requests[part.request].seeds[index]),
                    )
                    for part in batch
                    for index in part.indices
                ]
                rest -= sum(expected[sequence.request] for sequence in sequences)
                for ended in self._run(batch, sequences, sampling):
                    for sequence in ended:
                        done[sequence.request, sequence.index] = completion = _completion(sequence)
                        if on_completion is not None:
                            on_completion(sequence.request, sequence.index, completion)
                    if on_progress is not None:
                        now = produced + sum(len(sequence.ids) for sequence in sequences)
                        on_progress(
                            now,
                            now
                            + rest
                            + sum(
                                0 if sequence.finished else sequence.state.expected_remaining for sequence in sequences
                            ),
                        )
                produced += sum(len(sequence.ids) for sequence in sequences)
        return [[done[i, j] for j in range(len(request.seeds))] for i, request in enumerate(requests)]

    def _prepare(self, index: int, request: SamplingRequest) -> _RequestPart:
        start = prepare_request(
            request, self.layout, SequenceLimits(self.max_text_tokens, self.positions), f"request {index + 1}"
        )
        return _RequestPart(index, tuple(range(len(request.seeds))), request.prompt, start.state, start.expected_length)

    def _uniforms(self, seed: int) -> list[float]:
        numbers: list[float] = uniforms(seed, self.positions).tolist()
        return numbers

    def _batches(self, parts: Sequence[_RequestPart]) -> Iterable[list[_RequestPart]]:
        """Parts in batches within the budget of tokens, sorted by length; at least one completion each."""
        budget = self.max_batch_tokens or self._budget()
        batch: list[_RequestPart] = []
        sequences = longest = 0
        for part in sorted(parts, key=lambda part: (part.expected_length, len(part.prompt))):
            left = list(part.indices)
            while left:
                longest = max(longest, part.expected_length)
                fitting = min(len(left), budget // longest - sequences)
                if fitting < 1 and batch:
                    yield batch
                    batch, sequences, longest = [], 0, 0
                    continue
                taken = left[: max(1, fitting)]
                batch.append(replace(part, indices=tuple(taken)))
                sequences += len(taken)
                left = left[len(taken) :]
        if batch:
            yield batch

    def _budget(self) -> int:
        config, weight = self.model.config, self.model.model.embed_tokens.weight
        width = int(self.model.model.layers[0].self_attn.head_dim)
        bytes_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * weight.element_size()
        free = free_memory(weight.device)
        return max(1, (2_000_000_000 if free is None else free) // 2 // int(bytes_per_token))

    def _run(
        self, batch: Sequence[_RequestPart], sequences: list[_Sequence], sampling: SamplingParams
    ) -> Iterable[list[_Sequence]]:
        """Extends ``sequences`` in place; after every token yields those that are finished."""
        active = sequences
        decoder = Decoder(
            self.model, _padded_size(len(sequences)), max(part.expected_length - len(part.prompt) for part in batch)
        )
        hidden = self._prefill(decoder, batch, sequences)
        while active:
            _sample(active, hidden, decoder, sampling)
            for sequence in active:
                sequence.append_forced()
                full = sequence.prompt + len(sequence.ids) >= self.positions
                sequence.truncated = not sequence.state.done and (full or sequence.state.max_remaining == 0)
            yield [sequence for sequence in active if sequence.finished]
            going = [i for i, sequence in enumerate(active) if not sequence.finished]
            if not going:
                return
            if len(going) < len(active):
                active = [active[i] for i in going]
                decoder.keep([*going, *[going[-1]] * (_padded_size(len(going)) - len(going))])
            fed = [*active, *[active[-1]] * (decoder.batch_size - len(active))]
            hidden = decoder.step([sequence.pending for sequence in fed], [sequence.length for sequence in fed])
            for sequence in active:
                sequence.length += len(sequence.pending)
                sequence.pending = []

    def _prefill(self, decoder: Decoder, batch: Sequence[_RequestPart], sequences: Sequence[_Sequence]) -> Tensor:
        """Runs every prompt, with the forced tokens after it, once; returns Float[decoder.batch_size, hidden]."""
        rows: list[Tensor] = []
        for part in batch:
            siblings = sequences[len(rows) : len(rows) + len(part.indices)]
            for sequence in siblings:
                sequence.append_forced()
            filling = decoder.batch_size - len(sequences) if part is batch[-1] else 0
            hidden = decoder.prefill([*part.prompt, *siblings[0].pending], len(siblings) + filling)
            rows += [hidden] * (len(siblings) + filling)
            for sequence in siblings:
                sequence.pending = []
        return torch.stack(rows)


def _sample(active: Sequence[_Sequence], hidden: Tensor, decoder: Decoder, sampling: SamplingParams) -> None:
    """Samples one token for every sequence, from the rows of the head that its grammar allows."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, sequence in enumerate(active):
        allowed = sequence.state.allowed()
        groups.setdefault((allowed.start, allowed.stop), []).append(i)
    for (start, stop), members in groups.items():
        logits = decoder.logits(hidden, start, stop)
        if len(members) < len(logits):
            logits = logits[members]
        uniform = torch.tensor([active[i].uniforms[len(active[i].ids)] for i in members], dtype=torch.float64)
        columns, logprobs = sample_tokens(logits, uniform, sampling)
        for i, column, logprob in zip(members, columns.tolist(), logprobs.tolist(), strict=True):
            if math.isnan(logprob):
                raise ModelError(
                    "the model's logits are not finite", hint="its weights are damaged, or its training diverged"
                )
            active[i].append(start + column, logprob, sampled=True)


def _padded_size(sequences: int) -> int:
    """The batch size after padding, so that small batches use the same matrix kernels."""
    return 4 if sequences <= 4 else max(8, sequences)


def _completion(sequence: _Sequence) -> Completion:
    return Completion(
        np.array(sequence.ids, dtype=np.int64),
        np.array(sequence.logprobs, dtype=np.float32),
        np.array(sequence.sampled, dtype=np.bool_),
        sequence.state.done,
    )
