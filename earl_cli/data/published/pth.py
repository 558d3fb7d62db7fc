"""A published ``.pth`` file: one example of code grids, read so that nothing in it can run code or choose what is
loaded.

`torch_files` reads it, with our own constructors in place of numpy's: numpy trusts a pickle's description of a data
type, and a crafted one makes it read foreign memory. What they are called with is checked before numpy gets it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earl_cli.data.sources.base import BadRowError
from earl_cli.data.store import TokenizedExample
from earl_cli.models.pickles import ForeignNameError, OrderedRecord, PickleError, TensorRecord
from earl_cli.models.torch_files import SavedFile, read_torch_file

SUFFIX = ".pth"
MAX_BYTES = 64 * 2**20
MAX_SIDE = 9999
UNSAFE = "unsafe"
"""The kind of a reject that could run code."""

_INTEGER = re.compile("[iu][1248]")
_INTEGERS = {
    f"{sign}int{bits}": f"{letter}{bits // 8}" for sign, letter in (("", "i"), ("u", "u")) for bits in (8, 16, 32, 64)
}


class _Array:
    """Stands for a numpy array, with its pickled state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DataType:
    """Stands for a numpy data type."""

    state: Any = None

    def __init__(self, code: Any, *_options: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _new_array(_class: Any, _shape: Any, _code: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    return b""


def _bytes_of(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes; other encodings could expand few bytes to many."""
    if encoding not in ("latin1", "latin-1"):
        raise PickleError(f"it has bytes encoded as {encoding[:40]!r}, not as latin1")
    return text.encode("latin1")


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _new_array,  # numpy 1
    "numpy._core.multiarray._reconstruct": _new_array,  # numpy 2
    "numpy.ndarray": _Array,
    "numpy.dtype": _DataType,
    "builtins.bytes": _no_bytes,  # how an empty array's bytes are pickled
    "_codecs.encode": _bytes_of,
}


def read_pth(content: bytes, row: int, name: str, where: str, codes: int) -> TokenizedExample:
    """The example in the bytes of a file: codes uint16[h, w], checked against a codebook of ``codes``.

    ``name`` is the file's, used as the id if the file has none. Raises BadRowError for a file that is damaged, holds
    something else or could run code (`UNSAFE`, with the name that it refers to).
    """
    saved = _load(content, where)
    fields = saved.value
    if type(fields) is not dict:
        raise BadRowError("fields", f"it holds a {_type_name(fields)}, not a dict of fields", where=where)
    return TokenizedExample(
        row,
        _id(fields.get("edit_id"), name),
        _instruction(fields.get("instruction"), where),
        _grid(saved, "original_image", codes, where),
        _grid(saved, "edited_image", codes, where),
        _thoughts(fields.get("CoT"), where),
        "",
    )


def write_pth(example: TokenizedExample) -> bytes:
    """The published file of an example; equal examples give equal bytes. Codes are int64[h, w], as published."""
    import torch

    fields = {
        "edit_id": example.id + SUFFIX,
        "original_image": example.source.astype(np.int64),
        "edited_image": example.target.astype(np.int64),
        "CoT": dict(example.thoughts),
        "instruction": example.instruction,
    }
    stream = io.BytesIO()
    torch.save(fields, stream)
    return stream.getvalue()


def _load(content: bytes, where: str) -> SavedFile:
    try:
        return read_torch_file(content, _CONSTRUCTORS)
    except ForeignNameError as error:
        what = f"this file refers to {error.name[:80]!r}, which could run code, so it was not loaded"
        hint = "tokenized data hold arrays and texts only: don't use data from this place"
        raise BadRowError(UNSAFE, what, where=where, hint=hint) from None
    except PickleError as error:
        raise BadRowError("pickle", f"not a readable file of torch.save: {error}", where=where) from None


# -- its fields --------------------------------------------------------------------------------------------------------


def _type_name(value: Any) -> str:
    """The type that a value had before it was pickled."""
    names = {_Array: "numpy array", TensorRecord: "tensor", OrderedRecord: "OrderedDict"}
    return names.get(type(value), type(value).__name__.lstrip("_"))


def _id(value: Any, name: str) -> str:
    """The id, without the suffix that published data give it inside the file as well as outside."""
    if isinstance(value, str | int) and _is_text(str(value)) and str(value) not in ("", SUFFIX):
        name = str(value)
    return name.removesuffix(SUFFIX)


def _instruction(value: Any, where: str) -> str:
    if isinstance(value, _Array):
        found = _numpy(value)
        value = found if isinstance(found, list) else value
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if not _is_text(value) or not value.strip():
        what = "empty" if value is None or isinstance(value, str) else f"a {_type_name(value)}"
        raise BadRowError("instruction", f"the instruction is {what}, not a text", where=where)
    return str(value)


def _thoughts(value: Any, where: str) -> dict[str, str]:
    if value is None or (isinstance(value, str) and not value):
        return {}
    if type(value) is not dict:
        raise BadRowError("thoughts", f"CoT is a {_type_name(value)}, not texts by their keys", where=where)
    thoughts = {}
    for key, text in value.items():
        if text is None:
            continue
        if not _is_text(key) or not _is_text(text):
            kinds = f"{_type_name(key)} to {_type_name(text)}"
            raise BadRowError("thoughts", f"an entry of CoT is {kinds}, not a text by its key", where=where)
        thoughts[key] = text
    return thoughts


def _is_text(value: Any) -> bool:
    """Whether this is text without lone surrogates, which a pickle can hold and UTF-8 can't."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _grid(saved: SavedFile, name: str, codes: int, where: str) -> NDArray[np.uint16]:
    grid = _integers(saved, saved.value.get(name))
    what = grid if isinstance(grid, str) else _shape_error(grid.shape)
    if isinstance(grid, np.ndarray) and not what:
        values = grid.reshape(grid.shape[-2:])
        low, high = int(values.min()), int(values.max())
        worst = low if low < 0 else high
        if 0 <= worst < codes:
            return values.astype(np.uint16)
        what = f"has the code {worst}, outside of a codebook of {codes}"
    raise BadRowError("codes", f"{name} {what}", where=where)


def _shape_error(shape: Sequence[int]) -> str:
    """What is wrong with the shape of a grid, empty if nothing; there may be a leading axis of length one."""
    sides = "*".join(map(str, shape[:8]))
    if len(shape) != 2 and (len(shape) != 3 or shape[0] != 1):
        return f"is of {sides or 'one'} codes, not in rows and columns"
    if not all(1 <= side <= MAX_SIDE for side in shape[-2:]):
        return f"is of {sides} codes, not 1 to {MAX_SIDE} a side"
    return ""


def _integers(saved: SavedFile, value: Any) -> NDArray[Any] | str:
    """The array or tensor, of any shape; or a description of what it is instead of one of integers."""
    if isinstance(value, _Array):
        found = _numpy(value)
        return "is an array of objects, not of integers" if isinstance(found, list) else found
    if isinstance(value, TensorRecord):
        if value.kind not in _INTEGERS:
            return f"is a tensor of {value.kind}, not of integers"
        return _shape_error(value.shape) or _tensor(saved, value)
    return "is missing" if value is None else f"is a {_type_name(value)}, not an array"


def _tensor(saved: SavedFile, tensor: TensorRecord) -> NDArray[Any] | str:
    """The tensor's values; or a description of why they can't be read."""
    try:
        content = saved.read_storage(tensor.storage)
    except PickleError as error:
        return f"is a damaged tensor: {error}"
    kind = np.dtype((">" if saved.big_endian else "<") + _INTEGERS[tensor.kind])
    strides = [stride * kind.itemsize for stride in tensor.strides]
    return np.ndarray(tensor.shape, kind, content, tensor.offset * kind.itemsize, strides)


def _numpy(array: _Array) -> NDArray[Any] | list[Any] | str:
    """The array that a pickle describes, or the list if it is of Python objects; else what is wrong with it."""
    match array.state:
        case (
            int(),
            tuple(shape),
            _DataType(code=str(code), state=(int(), str(order), *_)),
            bool(columns_first),
            content,
        ):
            if code.startswith("O") and type(content) is list:
                return content
            if not _INTEGER.fullmatch(code) or order not in ("<", ">", "|", "="):
                return f"is an array of {code[:8]!r}, not of integers"
            kind = np.dtype(order + code)
            sides = all(type(side) is int and side >= 0 for side in shape)
            if sides and _shape_error(shape):
                return _shape_error(shape)
            if sides and type(content) is bytes and len(content) == math.prod(shape) * kind.itemsize:
                return np.frombuffer(content, kind).reshape(shape, order="F" if columns_first else "C")
    return "is a damaged array"
