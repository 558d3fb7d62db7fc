"""Which id means what: text, control tokens and visual codes share one id space; a code plus an offset is its id.

`EMU3` is the vocabulary of Emu3 and EARL; `small_vocabulary` makes one of any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from earl_cli.errors import InputError, ModelError

CONTROLS = ("pad", "eol", "eof", "bos", "eos", "img", "boi", "eoi")


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one model: text is ``[0, text_size)``, code ``c`` is ``visual_start + c``, the control ids lie between.

    ``eol`` ends a row of codes, ``eof`` the frame, ``boi`` and ``eoi`` enclose an image, its codes follow ``img``.
    Raises ModelError if two meanings share an id or an id lies in another one's range.
    """

    text_size: int
    pad: int
    eol: int
    eof: int
    bos: int
    eos: int
    img: int
    boi: int
    eoi: int
    visual_start: int
    codes: int

    def __post_init__(self) -> None:
        controls = [getattr(self, name) for name in CONTROLS]
        if self.text_size < 1 or self.codes < 1:
            raise ModelError(
                f"a vocabulary needs text and visual ids, got {self.text_size} and {self.codes}", where="vocabulary"
            )
        if len(set(controls)) < len(controls):
            raise ModelError(f"two control tokens share an id: {dict(zip(CONTROLS, controls, strict=True))}")
        for name, control in zip(CONTROLS, controls, strict=True):
            if not self.text_size <= control < self.visual_start:
                raise ModelError(
                    f"{name} has id {control}, outside {self.text_size} to {self.visual_start - 1}", where="vocabulary"
                )

    @property
    def size(self) -> int:
        """Number of ids: the rows of the model's embedding and of its head."""
        return self.visual_start + self.codes

    @property
    def text_end(self) -> int:
        """End (exclusive) of the ids that aren't visual codes: text, control and unused ids."""
        return self.visual_start

    @property
    def closing(self) -> tuple[int, int, int, int]:
        """What follows the last row of the edited image: eof, eoi, eos, then only pad."""
        return (self.eof, self.eoi, self.eos, self.pad)

    def to_ids(self, codes: ArrayLike) -> NDArray[np.int64]:
        """Ids of visual codes, same shape. Raises InputError for a code outside ``[0, codes)`` or no integer."""
        return _shifted(codes, "code", 0, self.codes, self.visual_start)

    def to_codes(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Codes of visual ids, same shape; the inverse of `to_ids`. Raises InputError for an id that is no code."""
        return _shifted(ids, "visual id", self.visual_start, self.size, -self.visual_start)

    def is_visual(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """Which ids are visual codes, same shape."""
        array = np.asarray(ids)
        return np.asarray((array >= self.visual_start) & (array < self.size), dtype=np.bool_)

    def describe(self, token: int) -> str:
        """The meaning of one id in words: ``eol``, ``code 17``, ``text``, ``unused id 151644``."""
        for name in CONTROLS:
            if token == getattr(self, name):
                return name
        if 0 <= token < self.text_size:
            return "text"
        if self.visual_start <= token < self.size:
            return f"code {token - self.visual_start}"
        return f"unused id {token}" if 0 <= token < self.size else f"unknown id {token}"

    def to_dict(self) -> dict[str, int]:
        """Plain numbers by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """The inverse of `to_dict`. Raises ModelError for missing, unknown or non-integer entries."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            raise ModelError(f"a vocabulary needs exactly the entries {', '.join(names)}", where="vocabulary")
        wrong = [name for name in names if type(values[name]) is not int]
        if wrong:
            raise ModelError(f"{wrong[0]} is {values[wrong[0]]!r}, which is no integer", where="vocabulary")
        return cls(**{name: values[name] for name in names})


def _shifted(values: ArrayLike, name: str, start: int, stop: int, offset: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(array.shape, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name}s must be integers, got {array.dtype}")
    low, high = int(array.min()), int(array.max())
    if low < start or high >= stop:
        raise InputError(f"{name} {low if low < start else high} is outside {start} to {stop - 1}")
    return array.astype(np.int64) + offset


def small_vocabulary(text_size: int, codes: int) -> Vocabulary:
    """A vocabulary without gaps: text, pad, eol, eof, bos, eos, img, boi, eoi, then the visual codes."""
    controls = {name: text_size + index for index, name in enumerate(CONTROLS)}
    return Vocabulary(text_size=text_size, **controls, visual_start=text_size + len(CONTROLS), codes=codes)


EMU3 = Vocabulary(
    text_size=151643,
    pad=151643,
    eol=151846,
    eof=151847,
    bos=151849,
    eos=151850,
    img=151851,
    boi=151852,
    eoi=151853,
    visual_start=151854,
    codes=32768,
)
