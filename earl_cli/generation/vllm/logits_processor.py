"""EARL's sampling as a logits processor of vLLM's model runner V1, given to an engine by name.

It isn't an entry point of the group `vllm.logits_processors`: these are loaded into every engine of an installation,
and one of V1's keeps those of V2 from starting.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality

from earl_cli.generation.vllm.row_sampler import EXTRA_ARGS_KEY, RowSpec, RowState, sample_rows
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.tokens.text import load_text_tokenizer
from earl_cli.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def layout_of(config: Mapping[str, Any]) -> SequenceLayout:
    """The sequence layout in an engine's `additional_config`: a vocabulary, and a folder with the text tokenizer."""
    vocabulary = Vocabulary.from_dict(config["vocabulary"])
    return SequenceLayout(vocabulary, load_text_tokenizer(Path(config["text"])))


class SamplingProcessor(LogitsProcessor):
    """Samples for every request that has a `RowSpec` in its `extra_args`; other requests are left to vLLM."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises InputError for a specification that can't be used."""
        if spec := (sampling_params.extra_args or {}).get(EXTRA_ARGS_KEY):
            RowSpec.from_dict(spec)

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:  # noqa: ARG002 - vLLM's signature
        self.layout = layout_of(vllm_config.additional_config[EXTRA_ARGS_KEY])
        self.rows: dict[int, tuple[RowState, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """False: the processor decides the token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Keep the states of requests at their rows of the batch."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, _, written in batch_update.added:
            self.rows.pop(row, None)
            if spec := (params.extra_args or {}).get(EXTRA_ARGS_KEY):
                self.rows[row] = RowState(RowSpec.from_dict(spec), self.layout), written
        for source, target, direction in batch_update.moved:
            moved, replaced = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self.rows[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """Sample a token for every row with a state; ``logits`` Float32[rows, vocabulary]."""
        for state, written in self.rows.values():
            state.advance_to(written)
        sample_rows(logits, ((row, state) for row, (state, _) in self.rows.items()))
        return logits
