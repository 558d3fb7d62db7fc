"""The sequence layout: the one place where a sequence is assembled and parsed, for training, sampling and editing.

Training and sampling see the same prompts: ``prompt(...)`` is a strict prefix of ``example(...).ids`` in every mode.
Text before and after a boundary is tokenized separately, so no token spans one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from earl_cli.errors import InputError, ModelError
from earl_cli.tokens.text import TextTokenizer
from earl_cli.tokens.vocabulary import Vocabulary

Ids = NDArray[np.int64]
Mode = Literal["edit", "reasoning", "mixed"]

THINKING_START = "<|start thinking|>"
THINKING_END = "<|end thinking|>"
THINKING_PREFIX = f" Let's think step by step. {THINKING_START}"
THINKING_SUFFIX = THINKING_END
THOUGHTS_LIMIT = 1750

_GRID = re.compile(r"([1-9][0-9]{0,3})\*([1-9][0-9]{0,3})")
GridSize = tuple[int, int]
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
"""A coordinate, its digits a group."""
BOX = rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]"
"""A box, its four coordinates groups."""
_BOX = re.compile(BOX)


@dataclass(frozen=True)
class Grid:
    """Rows and columns of an image's codes, 1 to 9999 each; Emu3 spells it ``height*width``."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if not (1 <= self.height <= 9999 and 1 <= self.width <= 9999):
            raise InputError(f"a grid of {self.height}*{self.width} codes; both sides must be 1 to 9999")

    def __str__(self) -> str:
        return f"{self.height}*{self.width}"

    @property
    def codes(self) -> int:
        """Number of codes."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens after img, up to and including eoi: the codes, an eol for every row, eof and eoi."""
        return self.height * self.width + self.height + 2

    @staticmethod
    def read(text: str) -> Grid | None:
        """The grid that ``height*width`` spells, or None if the text spells none."""
        match = _GRID.fullmatch(text)
        return Grid(int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, eq=False)
class Example:
    """One training sequence: ``ids`` int64[n] ending with eos; the loss counts from index ``loss_from`` on."""

    ids: Ids
    loss_from: int


@dataclass(frozen=True, eq=False)
class ParsedCompletion:
    """The parts of a completion.

    ``codes`` int64[height, width] are None if any code is missing; ``finished``: eos follows the image; ``problem`` is
    the first error in the completion, in words.
    """

    codes: Ids | None
    grid: Grid | None
    thoughts: str | None
    finished: bool
    problem: str | None


@dataclass(frozen=True, eq=False)
class ParsedSequence:
    """The parts of a whole training sequence; the fields after ``source`` are None where it ends before them."""

    source: Ids | None
    instruction: str | None
    thoughts: str | None
    target: Ids | None
    finished: bool
    problem: str | None


def thoughts_text(cot: Mapping[str, str], keys: Iterable[str]) -> str:
    """``"key: value"`` for each of ``keys`` that ``cot`` has, joined by spaces and cut to 1750 characters.

    As published, white space around a value is removed, and an empty value leaves ``key: ``.
    """
    return " ".join(f"{key}: {cot[key].strip()}" for key in keys if key in cot)[:THOUGHTS_LIMIT]


@dataclass(frozen=True)
class SequenceLayout:
    """Sequences for one vocabulary and its text tokenizer.

    Raises ModelError if the tokenizer has more tokens than the vocabulary has text ids.
    """

    vocabulary: Vocabulary
    text: TextTokenizer

    def __post_init__(self) -> None:
        if self.text.size > self.vocabulary.text_size:
            raise ModelError(
                f"the text tokenizer has {self.text.size} tokens, but the model has only "
                f"{self.vocabulary.text_size} text ids",
                hint="the tokenizer's files belong to another model",
            )

    @cached_property
    def thinking_prefix(self) -> Ids:
        """The ids that begin the reasoning: the end of every prompt in reasoning mode."""
        return np.array(self.text.encode(THINKING_PREFIX), dtype=np.int64)

    def opening(self, grid: Grid) -> Ids:
        """boi, ``height*width`` and img: the ids of an image before its codes."""
        return np.array([self.vocabulary.boi, *self.text.encode(str(grid)), self.vocabulary.img], dtype=np.int64)

    def image(self, codes: ArrayLike) -> Ids:
        """Ids of an image, from boi to eoi, of codes integer[height, width]. Raises InputError for anything else."""
        array = np.asarray(codes)
        grid = grid_of(array)
        opening = self.opening(grid)
        ids = np.empty(len(opening) + grid.tokens, dtype=np.int64)
        ids[: len(opening)] = opening
        rows = ids[len(opening) : -2].reshape(grid.height, grid.width + 1)
        rows[:, :-1] = self.vocabulary.to_ids(array)
        rows[:, -1] = self.vocabulary.eol
        ids[-2:] = self.vocabulary.eof, self.vocabulary.eoi
        return ids

    def prompt(self, source: ArrayLike, instruction: str, mode: Mode = "edit", grid: Grid | None = None) -> Ids:
        """The prompt int64[n]: bos, the source image, the instruction, and the mode's opening.

        edit: boi, ``height*width`` of ``grid`` (by default the source's) and img; the first sampled id is a code.
        reasoning: the thinking prefix. mixed: nothing; the model decides whether to reason first.
        """
        parts = [*self._prompt_parts(np.asarray(source), instruction)]
        if mode == "edit":
            parts.append(self.opening(grid or grid_of(np.asarray(source))))
        elif mode == "reasoning":
            parts.append(self.thinking_prefix)
        elif mode != "mixed":
            raise InputError(f"mode {mode!r} is not edit, reasoning or mixed")
        return np.concatenate(parts)

    def example(self, source: ArrayLike, instruction: str, target: ArrayLike, thoughts: str | None = None) -> Example:
        """A training sequence: the mixed prompt, the thinking if ``thoughts`` is given, the target image and eos."""
        parts = [*self._prompt_parts(np.asarray(source), instruction)]
        loss_from = sum(map(len, parts))
        if thoughts is not None:
            parts += self._thinking(thoughts)
        parts += [self.image(target), np.array([self.vocabulary.eos])]
        return Example(np.concatenate(parts), loss_from)

    def thinking_length(self, thoughts: str) -> int:
        """How many tokens ``thoughts`` add to an `example`."""
        return sum(map(len, self._thinking(thoughts)))

    def parse_completion(self, ids: ArrayLike, mode: Mode = "edit", grid: Grid | None = None) -> ParsedCompletion:
        """Parse a completion of a prompt of this mode; no sampled ids raise an error, ``problem`` describes theirs.

        ``grid`` is the prompt's and required in edit mode; the other modes read it from the ids.
        """
        array = _sequence(ids)
        unknown = self._unknown(array)
        if unknown:
            return ParsedCompletion(None, grid, None, False, unknown)
        if mode == "edit":
            if grid is None:
                raise InputError("an edit completion has no height*width of its own: pass the grid of its prompt")
            codes, finished, problem = self._read_rows(array, grid)
            return ParsedCompletion(codes, grid, None, finished, problem)
        if mode not in ("reasoning", "mixed"):
            raise InputError(f"mode {mode!r} is not edit, reasoning or mixed")
        return self._read_completion(array, thinking=mode == "reasoning")

    def parse(self, ids: ArrayLike, loss_from: int | None = None) -> ParsedSequence:
        """Parse a whole training sequence; damaged ids don't raise, ``problem`` says what is wrong with them.

        ``loss_from`` of the `Example` separates instruction and completion. Without it the completion starts at the
        first thinking prefix, which is wrong only where the instruction itself contains that prefix.
        """
        array, vocabulary = _sequence(ids), self.vocabulary
        problem = self._unknown(array)
        if problem is None and (len(array) == 0 or array[0] != vocabulary.bos):
            problem = (
                f"starts with {vocabulary.describe(int(array[0]))} instead of bos" if len(array) else "no ids at all"
            )
        if problem:
            return ParsedSequence(None, None, None, None, False, problem)
        source, start, problem = self._read_source(array)
        if source is None or problem:
            return ParsedSequence(source, None, None, None, False, f"source image: {problem}")
        split = self._find_completion(array, start) if loss_from is None else loss_from
        section = array[start:split]
        instruction = self._decode(section)
        if split >= len(array):
            return ParsedSequence(source, instruction, None, None, False, "nothing after the instruction")
        completion = self._read_completion(array[split:], thinking=False)
        stray = self._stray(section)
        problem = f"instruction: {stray}" if stray else completion.problem
        return ParsedSequence(source, instruction, completion.thoughts, completion.codes, completion.finished, problem)

    def _prompt_parts(self, source: NDArray[np.generic], instruction: str) -> tuple[Ids, Ids, Ids]:
        return np.array([self.vocabulary.bos]), self.image(source), self._text(instruction)

    def _thinking(self, thoughts: str) -> list[Ids]:
        return [self.thinking_prefix, self._text(f" {thoughts}{THINKING_SUFFIX}")]

    def _text(self, text: str) -> Ids:
        return np.array(self.text.encode(text), dtype=np.int64)

    def _decode(self, ids: Ids) -> str:
        return self.text.decode(ids[ids < self.vocabulary.text_size].tolist())

    def _unknown(self, ids: Ids) -> str | None:
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocabulary.size))
        if len(outside) == 0:
            return None
        return f"id {ids[outside[0]]} at position {outside[0]} is outside the vocabulary of {self.vocabulary.size}"

    def _stray(self, ids: Ids) -> str | None:
        stray = np.flatnonzero(ids >= self.vocabulary.text_size)
        return f"{self.vocabulary.describe(int(ids[stray[0]]))} stands inside the text" if len(stray) else None

    def _find_completion(self, ids: Ids, start: int) -> int:
        """Where the instruction that begins at ``start`` ends: at the thinking prefix, boi, eos or pad."""
        rest = ids[start:]
        ends = np.flatnonzero(np.isin(rest, (self.vocabulary.boi, self.vocabulary.eos, self.vocabulary.pad)))
        end = int(ends[0]) if len(ends) else len(rest)
        prefix = self.thinking_prefix
        if end >= len(prefix):
            windows = np.lib.stride_tricks.sliding_window_view(rest[:end], len(prefix))
            hits = np.flatnonzero((windows == prefix).all(axis=1))
            end = int(hits[0]) if len(hits) else end
        return start + end

    def _read_source(self, ids: Ids) -> tuple[Ids | None, int, str | None]:
        """Codes of the image after bos, the index after its eoi, and its problem."""
        if len(ids) < 2 or ids[1] != self.vocabulary.boi:
            return None, 1, "boi doesn't follow bos"
        images = np.flatnonzero(ids == self.vocabulary.img)
        grid = self._read_grid(ids[2 : images[0]]) if len(images) else None
        if grid is None:
            return None, 1, "the height*width header can't be read"
        start = int(images[0]) + 1
        end = start + grid.tokens
        codes, problem = self._read_codes(ids[start:], grid)
        if codes is not None and ids[end - 2 : end].tolist() != list(self.vocabulary.closing[:2]):
            problem = "eof and eoi don't follow the last row"
        return codes, end, problem

    def _read_grid(self, ids: Ids) -> Grid | None:
        return None if len(ids) > 9 or self._stray(ids) else Grid.read(self._decode(ids))

    def _read_completion(self, ids: Ids, *, thinking: bool) -> ParsedCompletion:
        """Thoughts and image of a completion; the image opens at the last boi before the first visual id."""
        vocabulary = self.vocabulary
        visual = np.flatnonzero(ids >= vocabulary.visual_start)
        head = ids[: visual[0]] if len(visual) else ids
        opens = np.flatnonzero(head == vocabulary.boi)
        text = head[: opens[-1]] if len(opens) else head
        thoughts, problem = self._read_thoughts(text, thinking=thinking)
        if not len(opens):
            ended = np.flatnonzero(np.isin(head, (vocabulary.eos, vocabulary.pad)))
            fault = "ends without an image" if len(ended) else "stops before the image begins"
            fault = "the image has no boi and no height*width header" if len(visual) else fault
            return ParsedCompletion(None, None, thoughts, False, fault)
        header = head[opens[-1] + 1 :]
        images = np.flatnonzero(header == vocabulary.img)
        grid = self._read_grid(header[: images[0]]) if len(images) else None
        if grid is None:
            return ParsedCompletion(None, None, thoughts, False, "the height*width header can't be read")
        rows = ids[opens[-1] + 2 + images[0] :]
        codes, finished, fault_in_rows = self._read_rows(rows, grid)
        return ParsedCompletion(
            codes, grid, thoughts, finished, fault_in_rows if codes is None else problem or fault_in_rows
        )

    def _read_thoughts(self, ids: Ids, *, thinking: bool) -> tuple[str | None, str | None]:
        """Text between the thinking marks, and its problem; with ``thinking`` the prompt holds the first mark."""
        problem = self._stray(ids)
        text = self._decode(ids)
        if not thinking:
            if not text:
                return None, problem
            _, mark, after = text.partition(THINKING_START)
            if not mark:
                return text, problem or f"text before the image without {THINKING_START}"
            text = after
        thoughts, mark, _ = text.rpartition(THINKING_END)
        if not mark:
            return text.removeprefix(" "), problem or f"the thinking isn't closed by {THINKING_END}"
        return thoughts.removeprefix(" "), problem

    def _read_rows(self, ids: Ids, grid: Grid) -> tuple[Ids | None, bool, str | None]:
        """Codes after img, whether eos follows them, and the problem."""
        codes, problem = self._read_codes(ids, grid)
        if codes is None:
            return None, False, problem
        *closing, pad = self.vocabulary.closing
        tail = ids[grid.tokens - 2 :]
        for name, want, found in zip(("eof", "eoi", "eos"), closing, tail.tolist(), strict=False):
            if found != want:
                return codes, False, f"{self.vocabulary.describe(found)} stands where {name} should close the image"
        if len(tail) < 3:
            return codes, False, f"stops before {('eof', 'eoi', 'eos')[len(tail)]}"
        after = np.flatnonzero(tail[3:] != pad)
        return codes, True, f"{self.vocabulary.describe(int(tail[3 + after[0]]))} follows eos" if len(after) else None

    def _read_codes(self, ids: Ids, grid: Grid) -> tuple[Ids | None, str | None]:
        """Codes int64[height, width] of the rows at the start of ``ids``, or the problem."""
        vocabulary, width = self.vocabulary, grid.width
        needed = grid.height * (width + 1)
        body = ids[:needed]
        at_end = np.arange(len(body)) % (width + 1) == width
        bad = np.flatnonzero(np.where(at_end, body != vocabulary.eol, body < vocabulary.visual_start))
        if len(bad) == 0 and len(body) == needed:
            return body.reshape(grid.height, width + 1)[:, :width] - vocabulary.visual_start, None
        stop = int(bad[0]) if len(bad) else len(body)
        row, column = divmod(stop, width + 1)
        read = row * width + min(column, width)
        if len(bad) == 0 or body[stop] in (vocabulary.eos, vocabulary.pad):
            return None, f"stops after {read} of {grid.codes} codes"
        found = int(body[stop])
        if found == vocabulary.eol:
            return None, f"row {row + 1} has {column} codes instead of {width}"
        if found >= vocabulary.visual_start:
            others = np.flatnonzero(ids[stop:] < vocabulary.visual_start)
            length = width + (int(others[0]) if len(others) else len(ids) - stop)
            return None, f"row {row + 1} has {length} codes instead of {width}"
        if found == vocabulary.eof:
            return None, f"the image ends after {read} of {grid.codes} codes"
        return None, f"{vocabulary.describe(found)} stands in row {row + 1} after {column} codes"


def grid_of(codes: NDArray[np.generic]) -> Grid:
    """Grid of codes [height, width]. Raises InputError if they aren't a filled table."""
    if codes.ndim != 2 or codes.size == 0:
        raise InputError(f"an image needs a table of codes, got shape {codes.shape}")
    return Grid(*codes.shape)


def _sequence(ids: ArrayLike) -> Ids:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"a sequence is a row of integer ids, got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def rescale_boxes(text: str, before: GridSize, after: GridSize) -> str:
    """``text`` with its boxes rescaled from an image of ``before`` (width, height) to ``after``, rounded to pixels.

    Only four numbers in square brackets are a box; everything else is unchanged.
    """
    scales = [after[0] / before[0], after[1] / before[1]] * 2

    def rescaled(match: re.Match[str]) -> str:
        corners = [round(float(number) * scale) for number, scale in zip(match.groups(), scales, strict=True)]
        return f"[{', '.join(map(str, corners))}]"

    return _BOX.sub(rescaled, text)
