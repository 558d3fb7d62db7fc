"""EARL's drawing as a logits processor of vLLM's model runner V1, given to an engine by name.

It isn't an entry point of the group `vllm.logits_processors`: these are loaded into every engine of an installation,
and one of V1's keeps those of V2 from starting.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality

from earl_cli.generation.vllm.row_sampler import KEY, RowSpec, RowState, sample_rows
from earl_cli.tokens.layout import SequenceLayout
from earl_cli.tokens.text import load_text_tokenizer
from earl_cli.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def layout_of(config: Mapping[str, Any]) -> SequenceLayout:
    """The layout that an engine's `additional_config` describes: a vocabulary, and a folder with the text tokenizer."""
    vocabulary = Vocabulary.from_dict(config["vocabulary"])
    return SequenceLayout(vocabulary, load_text_tokenizer(Path(config["text"])))


class SamplingProcessor(LogitsProcessor):
    """Draws for every request that has an `RowSpec` in its `extra_args`, and leaves the others alone."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for an order that can't be met."""
        if order := (sampling_params.extra_args or {}).get(KEY):
            RowSpec.from_dict(order)

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:  # noqa: ARG002 - vLLM's signature
        self.layout = layout_of(vllm_config.additional_config[KEY])
        self.lanes: dict[int, tuple[RowState, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """No: it decides."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests through the rows of the batch."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.lanes.pop(row, None)
        for row, params, _, written in batch_update.added:
            self.lanes.pop(row, None)
            if order := (params.extra_args or {}).get(KEY):
                self.lanes[row] = RowState(RowSpec.from_dict(order), self.layout), written
        for source, target, direction in batch_update.moved:
            moved, replaced = self.lanes.pop(source, None), self.lanes.pop(target, None)
            if moved is not None:
                self.lanes[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self.lanes[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """Draw a token for every row, ``logits`` Float32[rows, vocabulary]."""
        for lane, written in self.lanes.values():
            lane.catch_up(written)
        sample_rows(logits, ((row, lane) for row, (lane, _) in self.lanes.items()))
        return logits
