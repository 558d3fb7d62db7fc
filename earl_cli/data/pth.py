"""A published ``.pth`` file: one pair of code grids, read so that nothing in it can run or name what it likes.

torch's restricted unpickler reads it, with stand-ins for numpy's classes: numpy itself trusts what a pickle says of
a data type, and a crafted one makes it read foreign memory. What a stand-in was told is checked before numpy sees it.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earl_cli.data.sources import BadRowError
from earl_cli.data.store import TokenizedPair
from earl_cli.errors import InputError

SUFFIX = ".pth"
MOST_BYTES = 64 * 2**20
LONGEST_SIDE = 9999
_LEGACY_PICKLES = 5
"""torch.save's old format is a sequence of pickles: magic number, protocol, system, the object, keys of storages."""

_UNKNOWN = "?"
_INTEGER = re.compile("[iu][1248]")
_TORCH_GLOBALS = {
    "_codecs.encode",
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.storage.UntypedStorage",
    "torch.uint16",
    *(f"torch.{kind}Storage" for kind in ("Byte", "Char", "Short", "Int", "Long", "Half", "Float", "Double", "Bool")),
}


class _Array:
    """Stands for a numpy array: what its pickle says of it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Kind:
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


_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _new_array,  # numpy 1
    "numpy._core.multiarray._reconstruct": _new_array,  # numpy 2
    "numpy.ndarray": _Array,
    "numpy.dtype": _Kind,
    "builtins.bytes": _no_bytes,  # how an empty array's bytes are pickled
}


def read_pth(content: bytes, row: int, name: str, where: str, codes: int) -> TokenizedPair:
    """The pair in the bytes of a file: codes uint16[h, w], checked against a codebook of ``codes``.

    ``name`` is the file's, the id where the file itself names none. Raises BadRowError for a file that is damaged or
    holds something else, InputError, naming what was asked for, for one that could run code.
    """
    fields = _load(content, where)
    if type(fields) is not dict:
        raise BadRowError("fields", f"it holds a {type(fields).__name__}, not a dict of fields", where=where)
    return TokenizedPair(
        row,
        _id(fields.get("edit_id"), name),
        _instruction(fields.get("instruction"), where),
        _grid(fields, "original_image", codes, where),
        _grid(fields, "edited_image", codes, where),
        _thoughts(fields.get("CoT"), where),
        "",
    )


def write_pth(pair: TokenizedPair) -> bytes:
    """The published file of a pair: the same pair gives the same bytes. Codes are int64[h, w], as published."""
    import torch

    fields = {
        "edit_id": pair.id + SUFFIX,
        "original_image": pair.source.astype(np.int64),
        "edited_image": pair.target.astype(np.int64),
        "CoT": dict(pair.thoughts),
        "instruction": pair.instruction,
    }
    stream = io.BytesIO()
    torch.save(fields, stream)
    return stream.getvalue()


# -- the file ----------------------------------------------------------------------------------------------------------


def _load(content: bytes, where: str) -> Any:
    import torch

    try:
        if content.startswith(b"PK\x03\x04"):
            _check_pickle(io.BytesIO(_pickle_of(content)), 1, where)
        elif content.startswith(b"\x80"):
            _check_pickle(io.BytesIO(content), _LEGACY_PICKLES, where)
        else:
            raise ValueError("it isn't one")
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadRowError("pickle", f"not a file of torch.save that can be read: {what}", where=where) from None


def _pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = archive.infolist()
        if any(file.compress_type != zipfile.ZIP_STORED for file in files):
            raise ValueError("it is compressed, as torch.save never does")
        pickles = [file for file in files if file.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} files data.pkl")
        return archive.read(pickles[0])


def _check_pickle(stream: io.BytesIO, pickles: int, where: str) -> None:
    """Look at what the pickles ask for, and run nothing.

    Raises InputError for anything but arrays and tensors, ValueError for what torch doesn't write.
    """
    end = len(stream.getbuffer())
    protocols = set()
    for _ in range(pickles):
        if stream.tell() >= end:
            break
        memo: dict[Any, str] = {}
        texts = deque([_UNKNOWN, _UNKNOWN], maxlen=2)  # what was pushed last, to say what STACK_GLOBAL asks for
        for opcode, argument, _place in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                _check_global(str(argument).replace(" ", ".", 1), where)
            elif opcode.name == "STACK_GLOBAL":
                _check_global(".".join(texts), where)
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                _check_global(f"extension {argument}", where)
            elif opcode.name == "PROTO":
                protocols.add(argument)
            if "PUT" in opcode.name or opcode.name == "MEMOIZE":
                memo[len(memo) if argument is None else argument] = texts[-1]
            else:
                pushed = memo.get(argument, _UNKNOWN) if "GET" in opcode.name else argument
                texts.append(pushed if isinstance(pushed, str) else _UNKNOWN)
    if protocols != {2}:
        raise ValueError("it is a pickle of another protocol")


def _check_global(name: str, where: str) -> None:
    name = re.sub("^__builtin__[.]", "builtins.", name)
    if name not in _STAND_INS and name not in _TORCH_GLOBALS:
        raise InputError(
            f"this file asks for {name[:80]!r}, which could run code, so it was not loaded",
            where=where,
            hint="tokenized data hold arrays and texts only: don't use data from this place",
        )


# -- its fields --------------------------------------------------------------------------------------------------------


def _id(value: Any, name: str) -> str:
    """Published data call a pair ``<id>.pth``, inside the file as well as outside."""
    if isinstance(value, str | int) and _is_text(str(value)) and str(value) not in ("", SUFFIX):
        name = str(value)
    return name.removesuffix(SUFFIX)


def _instruction(value: Any, where: str) -> str:
    if isinstance(value, _Array):
        value = _numpy(value)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if not _is_text(value) or not value.strip():
        what = "empty" if value is None or isinstance(value, str) else f"a {type(value).__name__}"
        raise BadRowError("instruction", f"the instruction is {what}, not a text", where=where)
    return str(value)


def _thoughts(value: Any, where: str) -> dict[str, str]:
    if value is None or (isinstance(value, str) and not value):
        return {}
    if type(value) is not dict:
        raise BadRowError("thoughts", f"CoT is a {type(value).__name__}, not texts by their keys", where=where)
    thoughts = {}
    for key, text in value.items():
        if text is None:
            continue
        if not _is_text(key) or not _is_text(text):
            kinds = f"{type(key).__name__} to {type(text).__name__}"
            raise BadRowError("thoughts", f"an entry of CoT is {kinds}, not a text by its key", where=where)
        thoughts[key] = text
    return thoughts


def _is_text(value: Any) -> bool:
    """Whether this is text that can be stored: a pickle can hold half of a surrogate pair, which UTF-8 can't."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _grid(fields: Mapping[str, Any], name: str, codes: int, where: str) -> NDArray[np.uint16]:
    grid = _integers(fields.get(name))
    what = grid if isinstance(grid, str) else _shape_fault(grid.shape)
    if not what:
        values = np.asarray(grid).reshape(grid.shape[-2:])
        low, high = int(values.min()), int(values.max())
        worst = low if low < 0 else high
        if 0 <= worst < codes:
            return values.astype(np.uint16)
        what = f"has the code {worst}, outside of a codebook of {codes}"
    raise BadRowError("codes", f"{name} {what}", where=where)


def _shape_fault(shape: Sequence[int]) -> str:
    """What is wrong with the shape of a grid, in words; it may have an axis of length one in front."""
    sides = "*".join(map(str, shape[:8]))
    if len(shape) != 2 and (len(shape) != 3 or shape[0] != 1):
        return f"is of {sides or 'one'} codes, not in rows and columns"
    if not all(1 <= side <= LONGEST_SIDE for side in shape[-2:]):
        return f"is of {sides} codes, not 1 to {LONGEST_SIDE} a side"
    return ""


def _integers(value: Any) -> Any:
    """The array or tensor, of any shape; or in words what it is instead of one of integers."""
    import torch

    if isinstance(value, _Array):
        found = _numpy(value)
        return "is an array of objects, not of integers" if isinstance(found, list) else found
    if type(value) is torch.Tensor:
        integers = (torch.uint8, torch.uint16, torch.int8, torch.int16, torch.int32, torch.int64)
        whole = value.layout == torch.strided and value.dtype in integers
        return value if whole else f"is a tensor of {value.dtype}, not of integers"
    return "is missing" if value is None else f"is a {type(value).__name__}, not an array"


def _numpy(array: _Array) -> NDArray[Any] | list[Any] | str:
    """The array that a pickle describes, the list if it is one of Python objects; else in words what is wrong."""
    match array.state:
        case (int(), tuple(shape), _Kind(code=str(code), state=(int(), str(order), *_)), bool(columns_first), content):
            if code.startswith("O") and type(content) is list:
                return content
            if not _INTEGER.fullmatch(code) or order not in ("<", ">", "|", "="):
                return f"is an array of {code[:8]!r}, not of integers"
            kind = np.dtype(order + code)
            sides = all(type(side) is int and side >= 0 for side in shape) and len(shape) <= 8
            if sides and type(content) is bytes and len(content) == math.prod(shape) * kind.itemsize:
                return np.frombuffer(content, kind).reshape(shape, order="F" if columns_first else "C")
    return "is a damaged array"
