"""Which ids are allowed next, from the position alone: O(1) a step, without a scan of the tokens so far.

`SequenceLayout.parse_completion` reads every finished completion that obeys a `GrammarState` without loss, unless the
model ended it with eos before its image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from earl_cli.errors import InputError
from earl_cli.tokens.layout import Grid, Mode, SequenceLayout
from earl_cli.tokens.vocabulary import Vocabulary

Overlong: TypeAlias = Literal["force", "zero"]
"""What happens when text reaches its limit: "force" begins the image, "zero" (as published) ends the completion.

With "zero" every image also has the default grid; with "force" the model may choose the grid.
"""
_HEADER_PREFIX = re.compile(r"[1-9][0-9]{0,3}(\*([1-9][0-9]{0,3})?)?")
_MAX_HEADER = len("9999*9999")


@dataclass(frozen=True)
class ImageGrammar:
    """The ids after `img` of an image of ``height`` x ``width`` codes: rows closed by eol, then eof, eoi, eos."""

    vocabulary: Vocabulary
    height: int
    width: int

    @property
    def length(self) -> int:
        """Number of tokens after `img`, up to and including eos."""
        return self.height * (self.width + 1) + 3

    def forced(self, offset: int) -> int | None:
        """The only id allowed ``offset`` tokens after `img`, or None where any visual id is allowed."""
        row, column = divmod(offset, self.width + 1)
        if row < self.height:
            return self.vocabulary.eol if column == self.width else None
        return self.vocabulary.closing[min(offset - self.height * (self.width + 1), 3)]


@dataclass(frozen=True, slots=True)
class AllowedIds:
    """Ids allowed next: ``forced`` alone, or where that is None any of the half-open range ``[start, stop)``."""

    forced: int | None
    start: int
    stop: int

    def __contains__(self, token: int) -> bool:
        return self.start <= token < self.stop


@dataclass(frozen=True)
class GrammarRules:
    """The constants of one completion; ``opening`` is boi, ``height*width`` and img of ``image``."""

    layout: SequenceLayout
    image: ImageGrammar
    opening: tuple[int, ...]
    max_text_tokens: int
    max_grid_codes: int
    overlong: Overlong = "force"


@dataclass(frozen=True, slots=True)
class GrammarState:
    """The position in a completion; `advance` returns the next state and doesn't change this one.

    In edit mode the completion begins with the rows of the image. In the other modes any id but a code may come first:

    - eos ends the completion without an image; only pad may follow.
    - boi opens the header: digits, ``*``, digits. img after a grid of at most ``max_grid_codes`` codes opens its rows.
      As soon as the header is invalid or too large, the opening of the default grid is forced.
    - img without boi, and the text's ``max_text_tokens``-th token, are followed by that same forced opening.
    - with `Overlong` zero that token is followed by eos, and boi by the rest of the forced opening.

    So the last boi before the first code is always followed by a valid header.
    """

    rules: GrammarRules
    image: ImageGrammar | None = None  # set once the rows have begun
    offset: int = 0  # tokens after img if the rows have begun, else tokens of text
    header: tuple[int, ...] | None = None  # ids after boi
    opening_index: int | None = None  # how much of the forced opening has been written
    ended: bool = False  # by eos, before any image

    @property
    def done(self) -> bool:
        """Whether eos has been written, so that only pad may follow."""
        return self.ended or (self.image is not None and self.offset >= self.image.length)

    @property
    def max_remaining(self) -> int:
        """The most tokens that may still follow, with eos: the room that a key-value cache needs."""
        if self.done:
            return 0
        if self.image is not None:
            return self.image.length - self.offset
        default = len(self.rules.opening) + self.rules.image.length
        if self.opening_index is not None:
            return default - self.opening_index
        header = _MAX_HEADER - len(self.header or ())
        largest = 2 * self.rules.max_grid_codes + 3
        ahead = header + 1 + max(default, largest)
        return ahead if self.header is not None else ahead + self.rules.max_text_tokens - self.offset + 1

    @property
    def expected_remaining(self) -> int:
        """The expected number of further tokens: an image of the default grid, without more text."""
        return (
            self.max_remaining
            if self.image
            else min(self.max_remaining, self.rules.image.length + len(self.rules.opening))
        )

    def allowed(self) -> AllowedIds:
        """The ids that `advance` accepts."""
        vocabulary = self.rules.layout.vocabulary
        forced = None
        if self.ended:
            forced = vocabulary.pad
        elif self.image is not None:
            forced = self.image.forced(self.offset)
            if forced is None:
                return AllowedIds(None, vocabulary.visual_start, vocabulary.size)
        elif self.opening_index is not None:
            forced = self.rules.opening[self.opening_index]
        elif self.rules.overlong == "zero" and self.offset >= self.rules.max_text_tokens:
            forced = vocabulary.eos
        if forced is None:
            return AllowedIds(None, 0, vocabulary.visual_start)
        return AllowedIds(forced, forced, forced + 1)

    def advance(self, token: int) -> GrammarState:
        """The state after ``token``. Raises InputError for an id that `allowed` doesn't allow."""
        if token not in self.allowed():
            name = self.rules.layout.vocabulary.describe(token)
            raise InputError(f"{name} isn't allowed at this position", where="grammar")
        if self.ended:
            return self
        if self.image is not None:
            return GrammarState(self.rules, self.image, self.offset + 1)
        if self.opening_index is not None:
            return _force(self.rules, self.opening_index + 1)
        if token == self.rules.layout.vocabulary.eos:
            return GrammarState(self.rules, ended=True)
        return self._after_header_token(token) if self.header is not None else self._after_text_token(token)

    def _after_text_token(self, token: int) -> GrammarState:
        vocabulary = self.rules.layout.vocabulary
        forces = self.rules.overlong == "force"
        if token == vocabulary.boi:
            return GrammarState(self.rules, header=()) if forces else _force(self.rules, 1)
        if token == vocabulary.img or (forces and self.offset + 1 >= self.rules.max_text_tokens):
            return _force(self.rules, 0)
        return GrammarState(self.rules, offset=self.offset + 1)

    def _after_header_token(self, token: int) -> GrammarState:
        layout, header = self.rules.layout, self.header or ()
        if token == layout.vocabulary.img:
            grid = Grid.read(layout.text.decode(header))
            if grid is None or grid.codes > self.rules.max_grid_codes:
                return _force(self.rules, 0)
            return GrammarState(self.rules, ImageGrammar(layout.vocabulary, grid.height, grid.width))
        longer = (*header, token)
        if len(longer) > _MAX_HEADER or token >= layout.text.size:
            return _force(self.rules, 0)
        readable = _HEADER_PREFIX.fullmatch(layout.text.decode(longer))
        return GrammarState(self.rules, header=longer) if readable else _force(self.rules, 0)


@dataclass(frozen=True, slots=True)
class FreeState:
    """No grammar: any id of the vocabulary, up to eos or ``max_remaining`` tokens; the methods of `GrammarState`."""

    vocabulary: Vocabulary
    max_remaining: int
    done: bool = False

    @property
    def expected_remaining(self) -> int:
        """The most tokens that may still follow."""
        return 0 if self.done else self.max_remaining

    def allowed(self) -> AllowedIds:
        """All ids."""
        return AllowedIds(None, 0, self.vocabulary.size)

    def advance(self, token: int) -> FreeState:
        """The state after ``token``."""
        return FreeState(self.vocabulary, self.max_remaining - 1, token == self.vocabulary.eos)


def _force(rules: GrammarRules, opening_index: int) -> GrammarState:
    done = opening_index == len(rules.opening)
    return GrammarState(rules, rules.image) if done else GrammarState(rules, opening_index=opening_index)


def start_state(
    layout: SequenceLayout,
    mode: Mode,
    grid: Grid | None,
    max_text_tokens: int = 1024,
    max_grid_codes: int = 9216,
    overlong: Overlong = "force",
) -> GrammarState:
    """The state right after `SequenceLayout.prompt` of this mode and grid.

    ``grid`` is the edited image's in edit mode, and the default grid in the other modes. ``max_text_tokens`` limits the
    text before boi (0: the image comes at once), ``max_grid_codes`` the grid that the model may choose.
    Raises InputError without a grid or for an unknown mode.
    """
    if grid is None:
        raise InputError("sampling needs a grid: the edited image's, or the default grid", where=f"mode {mode}")
    image = ImageGrammar(layout.vocabulary, grid.height, grid.width)
    rules = GrammarRules(layout, image, tuple(layout.opening(grid).tolist()), max_text_tokens, max_grid_codes, overlong)
    if mode == "edit":
        return GrammarState(rules, image)
    if mode not in ("reasoning", "mixed"):
        raise InputError(f"mode {mode!r} is not edit, reasoning or mixed")
    return GrammarState(rules) if max_text_tokens > 0 else _force(rules, 0)
