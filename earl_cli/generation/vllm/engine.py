"""The engine vllm: continuous batching, and a key-value cache that shares prompts.

vLLM computes the logits; tokens are sampled from them by the same grammar, sampling parameters and random numbers as in
the transformers engine. Weights come from a model folder and can be replaced in place.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import ModelError, UsageError
from earl_cli.generation.engine import (
    MAX_TEXT_TOKENS,
    Completion,
    OnCompletion,
    OnProgress,
    PreparedRequest,
    SamplingRequest,
    SequenceLimits,
    prepare_request,
    request_grid,
)
from earl_cli.generation.vllm.environment import (
    check_device,
    check_engine_arguments,
    log_file,
    require_vllm,
    set_environment,
)
from earl_cli.generation.vllm.row_sampler import EXTRA_ARGS_KEY, RowSpec
from earl_cli.generation.vllm.watchdog import EngineThread
from earl_cli.models import names
from earl_cli.models.checkpoint import Checkpoint, open_checkpoint, part_config
from earl_cli.models.weights import open_weights, write_json
from earl_cli.tokens.grammar import FreeState, GrammarState
from earl_cli.tokens.layout import SequenceLayout

LOGITS_PROCESSOR = "earl_cli.generation.vllm.logits_processor:SamplingProcessor"
MAX_STREAMED = 32
"""Up to this number of completions progress is reported token by token; above it, by finished completions."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a call into the engine may take."""

    start: float = 1800
    step: float = 600
    update: float = 600
    other: float = 300
    shutdown: float = 30


@dataclass
class _PartialCompletion:
    """An unfinished completion of a request's seed, of ``expected`` tokens in all."""

    request: int
    index: int
    start: PreparedRequest
    expected: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    completion: Completion | None = None


class VllmEngine:
    """Samples from the language model in a folder, in either checkpoint format, with vLLM in this process.

    ``engine_args`` are vLLM's own, by name (tensor_parallel_size, quantization, gpu_memory_utilization, …). With
    ``sleeping`` the engine can release its GPU memory between two calls. ``transport`` is the backend of vLLM's weight
    transfer by which another process may send weights. ``max_text_tokens`` and ``max_positions`` are as in the
    transformers engine. Raises MissingExtraError without vLLM, UsageError for an argument that vLLM doesn't have or
    that EARL sets itself, ModelError for a vocabulary that isn't the layout's.
    """

    def __init__(
        self,
        folder: Path,
        layout: SequenceLayout,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_text_tokens: int = MAX_TEXT_TOKENS,
        max_positions: int | None = None,
        engine_args: Mapping[str, Any] | None = None,
        sleeping: bool = False,
        transport: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        require_vllm()
        check_device(device)
        checkpoint = open_checkpoint(folder, "language")
        config = part_config(checkpoint)
        if config["vocab_size"] != layout.vocabulary.size:
            what = f"the model has {config['vocab_size']} ids, the layout's vocabulary {layout.vocabulary.size}"
            raise ModelError(what, hint="model and tokenizer belong to different models")
        self.layout, self.timeouts = layout, timeouts or Timeouts()
        positions = min(int(config["max_position_embeddings"]), max_positions or 1 << 62)
        self.limits = SequenceLimits(max_text_tokens, positions)
        self._request_ids = itertools.count()
        self._sleeping, self._asleep = sleeping and device.type == "cuda", False
        self._folder = tempfile.TemporaryDirectory(prefix="earl-vllm-")
        place = Path(self._folder.name)
        write_config(checkpoint, place)
        layout.text.save(place)
        arguments = {
            "model": str(place),
            "tokenizer": None,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "dtype": str(dtype).removeprefix("torch."),
            "max_model_len": positions,
            "logits_processors": [LOGITS_PROCESSOR],
            "logprobs_mode": "processed_logits",
            "additional_config": {EXTRA_ARGS_KEY: {"vocabulary": layout.vocabulary.to_dict(), "text": str(place)}},
            "enable_sleep_mode": self._sleeping,
            "weight_transfer_config": {"backend": transport} if transport else None,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            **_default_arguments(device),
            **check_engine_arguments(engine_args or {}),
        }
        if checkpoint.combined:
            arguments["load_format"] = "dummy"
        self._eager = bool(arguments.get("enforce_eager"))
        set_environment(device, eager=self._eager)
        self._thread = EngineThread("the vLLM engine", log_file())
        self._llm = self._thread.call("the start", self.timeouts.start, lambda: _start_llm(arguments))
        if checkpoint.combined:
            self.update_weights(_stored_weights(checkpoint))

    def generate(
        self,
        requests: Sequence[SamplingRequest],
        sampling: SamplingParams,
        on_progress: OnProgress | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """For each request one completion for each seed, in order.

        ``on_progress`` counts the tokens of finished completions, and of all where there are few. Raises InputError for
        a prompt that is invalid or too long, EngineError if the engine dies or hangs.
        """
        starts = [
            prepare_request(each, self.layout, self.limits, f"request {i + 1}") for i, each in enumerate(requests)
        ]
        partials: dict[str, _PartialCompletion] = {}
        streamed = sum(len(request.seeds) for request in requests) <= MAX_STREAMED
        try:
            for number, (request, start) in enumerate(zip(requests, starts, strict=True)):
                for index, seed in enumerate(request.seeds):
                    name = str(next(self._request_ids))
                    self._add_request(
                        name, request, start, self._row_spec(request, start, seed, sampling), streamed=streamed
                    )
                    partials[name] = _PartialCompletion(
                        number, index, start, start.expected_length - len(request.prompt)
                    )
            self._run(partials, on_progress, on_completion)
        except BaseException:
            self._abort([name for name, partial in partials.items() if partial.completion is None])
            raise
        done = {
            (partial.request, partial.index): partial.completion for partial in partials.values() if partial.completion
        }
        return [[done[i, j] for j in range(len(request.seeds))] for i, request in enumerate(requests)]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights in place by ``weights``, under the model's own names, and clear the caches.

        Wakes an engine that sleeps.
        """
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # these weights were computed in another thread
        if self._asleep:
            self._call("taking memory for weights", self.timeouts.other, lambda: self._llm.wake_up(tags=["weights"]))
        arguments = {"weights_iterator": iter(weights)}
        self._call(
            "an update of the weights",
            self.timeouts.update,
            lambda: self._llm.collective_rpc("reload_weights", kwargs=arguments),
        )
        self.wake()
        self._call("clearing the cache", self.timeouts.other, self._llm.reset_prefix_cache)

    @property
    def workers(self) -> int:
        """How many worker processes compute, with this one where it is a worker."""
        return int(self._llm.llm_engine.vllm_config.parallel_config.world_size)

    def transfer(self, step: str, *given: Any) -> None:
        """One step of vLLM's weight transfer, by its name in `vllm.LLM`; the last one clears the caches."""
        self._call(step.replace("_", " "), self.timeouts.update, lambda: getattr(self._llm, step)(*given))
        if step == "finish_weight_update":
            self._call("clearing the cache", self.timeouts.other, self._llm.reset_prefix_cache)

    def sleep(self) -> None:
        """Release the GPU memory of weights and cache; only `update_weights` loads weights again."""
        if self._sleeping and not self._asleep:
            self._call("releasing memory", self.timeouts.other, lambda: self._llm.sleep(level=2))
            self._asleep = True

    def wake(self) -> None:
        """Allocate the cache again."""
        if self._asleep:
            self._call("taking memory for the cache", self.timeouts.other, lambda: self._llm.wake_up(tags=["kv_cache"]))
            self._asleep = False

    def close(self) -> None:
        """End the engine and its processes, dead or alive."""
        self._thread.close(self.timeouts.shutdown, self._llm.llm_engine.engine_core.shutdown)
        self._folder.cleanup()

    def _call(self, what: str, seconds: float, function: Any) -> Any:
        return self._thread.call(what, seconds, function)

    def _row_spec(
        self, request: SamplingRequest, start: PreparedRequest, seed: int, sampling: SamplingParams
    ) -> RowSpec:
        grid = request_grid(request, self.layout)
        return RowSpec(
            request.mode,
            grid.height,
            grid.width,
            request.grammar,
            seed,
            self.limits.positions,
            start.state.max_remaining,
            self.limits.text,
            2 * grid.codes,
            sampling,
            request.overlong,
        )

    def _add_request(
        self, name: str, request: SamplingRequest, start: PreparedRequest, spec: RowSpec, *, streamed: bool
    ) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=0.0,  # the logits processor has sampled
            max_tokens=min(start.state.max_remaining, self.limits.positions - len(request.prompt)),
            stop_token_ids=[self.layout.vocabulary.eos],
            ignore_eos=True,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
            extra_args={EXTRA_ARGS_KEY: spec.to_dict()},
        )
        prompt = {"prompt_token_ids": list(request.prompt)}
        add = self._llm.llm_engine.add_request
        self._call("adding a request", self.timeouts.other, lambda: add(name, prompt, parameters))

    def _run(
        self,
        partials: Mapping[str, _PartialCompletion],
        on_progress: OnProgress | None,
        on_completion: OnCompletion | None,
    ) -> None:
        unfinished = len(partials)
        done, expected = 0, sum(partial.expected for partial in partials.values())
        while unfinished:
            for output in self._call("a sampling step", self.timeouts.step, self._step):
                partial, new = partials[output.request_id], output.outputs[0]
                partial.ids += new.token_ids
                partial.logprobs += new.logprobs.logprobs
                done += len(new.token_ids)
                known = len(partial.ids) if output.finished else max(partial.expected, len(partial.ids) + 1)
                expected += known - partial.expected
                partial.expected = known
                if output.finished:
                    unfinished -= 1
                    partial.completion = _completion(partial)
                    if on_completion is not None:
                        on_completion(partial.request, partial.index, partial.completion)
            if on_progress is not None:
                on_progress(done, expected)

    def _step(self) -> Any:
        if not self._eager:
            return self._llm.llm_engine.step()
        with torch.compiler.set_stance("force_eager"):  # else a small helper function is compiled for 20 s
            return self._llm.llm_engine.step()

    def _abort(self, left: Sequence[str]) -> None:
        if left and not self._thread.dead:
            self._call("aborting requests", self.timeouts.other, lambda: self._llm.llm_engine.abort_request(list(left)))


def write_config(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a folder that vLLM reads: a config in transformers' format, and links to the weights."""
    config = {**part_config(checkpoint), "model_type": names.NATIVE_LANGUAGE, "architectures": [names.LANGUAGE_CLASS]}
    write_json(folder / "config.json", config)
    if not checkpoint.combined:
        for file in (*checkpoint.files, *checkpoint.folder.glob("*.index.json")):
            (folder / file.name).symlink_to(file.resolve())


def _default_arguments(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30, "block_size": 32}
    return {"gpu_memory_utilization": 0.8}  # some for the vision tokenizer


def _start_llm(arguments: Mapping[str, Any]) -> Any:
    from earl_cli.generation.vllm.plugin import register

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about what vLLM uses itself
            from vllm import LLM

            register()
            return LLM(**arguments)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UsageError(
            f"vLLM takes no such argument: {error}", where="--engine-arg (in a config engine_args)"
        ) from error


def _stored_weights(checkpoint: Checkpoint) -> Iterable[tuple[str, Tensor]]:
    for file in checkpoint.files:
        with open_weights(file) as (stored, read):
            for name in stored:
                if (native := checkpoint.native_name(name)) is not None:
                    yield native, read(name)


def _completion(partial: _PartialCompletion) -> Completion:
    ids, logprobs = np.array(partial.ids, dtype=np.int64), np.array(partial.logprobs, dtype=np.float32)
    if not np.isfinite(logprobs).all():
        raise ModelError("the model's logits are not finite", hint="its weights are damaged, or its training diverged")
    sampled, finished = _replay(partial.start.state, ids)
    return Completion(ids, logprobs, sampled, finished)


def _replay(state: GrammarState | FreeState, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], bool]:
    """Where the grammar allowed several ids, bool[n], and whether the completion is finished."""
    sampled = np.ones(len(ids), dtype=np.bool_)
    for place, token in enumerate(ids.tolist()):
        sampled[place] = state.allowed().forced is None
        state = state.advance(token)
    return sampled, state.done
