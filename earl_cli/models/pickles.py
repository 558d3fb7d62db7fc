"""The pickles of torch.save, read without unpickling: in bounded time and memory, without running code from the file.

Only what torch.save writes is supported (protocol 2). Globals map to functions of this module, keys are texts, and
depth, size and repetition are limited to what data files need, so a small hostile file can't hang or crash the process
or fill the memory.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

MAX_STEPS = 1_000_000
"""Limit of one pickle's instructions, and of the values in its result, counted as often as they are contained."""
MAX_DEPTH = 100
MAX_INTEGER_BYTES, MAX_NAME_BYTES = 16, 200  # bytes
MAX_DIMENSIONS = 64

STORAGES: Mapping[str, tuple[str, int]] = {
    "ByteStorage": ("uint8", 1),
    "CharStorage": ("int8", 1),
    "BoolStorage": ("bool", 1),
    "ShortStorage": ("int16", 2),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "IntStorage": ("int32", 4),
    "FloatStorage": ("float32", 4),
    "LongStorage": ("int64", 8),
    "DoubleStorage": ("float64", 8),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
}
"""torch's storage classes: the type and the bytes of an element."""
BARE_TYPES: Mapping[str, int] = {
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}
"""Types of elements without a storage class: the bytes of an element."""

PickleBytes = bytes | mmap.mmap
Constructor = Callable[..., Any]


class PickleError(ValueError):
    """A pickle with contents that torch.save never writes; the message says which."""


class ForeignNameError(PickleError):
    """A pickle asks for ``name``, which could run code."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name[:80]!r}, which could run code")
        self.name = name


@dataclass(frozen=True)
class Storage:
    """Elements in a file: the ``size`` bytes under ``key``; ``kind`` is the dtype as torch spells it."""

    key: str
    kind: str
    size: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as its pickle describes it, within its storage; offset and strides in elements."""

    storage: Storage
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class ParsedPickle:
    """The value of a pickle, where it ends in its file, and the storages that it refers to, by key."""

    value: Any
    end: int
    storages: Mapping[str, Storage]


class OrderedRecord(dict[str, Any]):
    """Stands for a collections.OrderedDict; its attributes are dropped."""

    def __setstate__(self, _state: Any) -> None:
        pass


@dataclass(frozen=True)
class _Global:
    """A global that a pickle names, and the function that stands for it."""

    name: str
    make: Constructor


@dataclass(frozen=True)
class _Type:
    """Stands for a torch.dtype, or for a class of storages (``bare``: of bytes)."""

    kind: str
    size: int
    bare: bool = False


def read_pickle(content: PickleBytes, constructors: Mapping[str, Constructor], start: int = 0) -> ParsedPickle:
    """The pickle that begins at ``start``.

    Tensors are `TensorRecord`; ``constructors`` map other globals, such as "numpy.ndarray", to functions. Raises
    ForeignNameError for any other global, PickleError for contents that torch.save doesn't write.
    """
    machine = _PickleMachine(content, constructors, start)
    try:
        return machine.run()
    except PickleError:
        raise
    except (IndexError, KeyError, struct.error):
        raise PickleError("it is damaged, or cut short") from None
    except (TypeError, AttributeError, UnicodeError, ValueError) as error:
        raise PickleError(f"it is damaged: {str(error)[:120]}") from None


class _PickleMachine:
    """Stack, memo and budgets of one pickle."""

    def __init__(self, content: PickleBytes, constructors: Mapping[str, Constructor], start: int) -> None:
        self.content, self.place = content, start
        self.names: dict[str, _Global | _Type] = {
            name: _Global(name, make) for name, make in {**_CONSTRUCTORS, **constructors}.items()
        }
        self.names |= _TYPES
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.steps = MAX_STEPS
        self.texts = 2 * len(content)  # characters that may be passed to functions
        self.extents: dict[int, tuple[int, int]] = {}  # depth and values of each container, by its id
        self.held: set[int] = set()  # containers inside another one
        self.alive: list[Any] = []  # every container, so that no id is reused

    def run(self) -> ParsedPickle:
        if self._take(2) != b"\x80\x02":
            raise PickleError("it is a pickle of another protocol than 2")
        while True:
            self.steps -= 1
            if self.steps < 0:
                raise PickleError(f"it has more than {MAX_STEPS:,} instructions")
            code = self._take(1)
            if code == b".":
                if len(self.stack) != 1 or self.marks:
                    raise PickleError("it is damaged: values are left over")
                return ParsedPickle(self.stack[0], self.place, self.storages)
            if code not in _INSTRUCTIONS:
                raise PickleError(f"it has the instruction {code!r}, which torch.save never writes")
            _INSTRUCTIONS[code](self)

    def _take(self, count: int) -> bytes:
        end = self.place + count
        if end > len(self.content):
            raise PickleError("it is cut short")
        taken, self.place = self.content[self.place : end], end
        return taken

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(value)

    def _line(self) -> str:
        end = self.content.find(b"\n", self.place, self.place + MAX_NAME_BYTES)
        if end < 0:
            raise PickleError("it asks for a name that is too long")
        line = self._take(end - self.place)
        self.place += 1
        return line.decode()

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise PickleError("it is damaged: a value is missing")
        return self.stack.pop()

    def _to_mark(self) -> list[Any]:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def _new(self, container: Any, values: Sequence[Any] = ()) -> None:
        if container != ():  # there is only one empty tuple
            self.alive.append(container)
            self.extents[id(container)] = (1, 1)
            self._hold(container, values)
        self._push(container)

    def _hold(self, container: Any, values: Sequence[Any]) -> None:
        """Count what is put into a container, which must be complete before it is put into another one."""
        depth, size = self.extents[id(container)]
        for value in values:
            inner = self.extents.get(id(value))
            if inner is not None:
                self.held.add(id(value))
                depth = max(depth, inner[0] + 1)
                size += inner[1]
            else:
                size += 1
        if id(container) in self.held:
            raise PickleError("it changes a value that is inside another one, or inside itself")
        if depth > MAX_DEPTH:
            raise PickleError(f"it is nested more than {MAX_DEPTH} deep")
        if size > MAX_STEPS:
            raise PickleError(f"it expands to more than {MAX_STEPS:,} values")
        self.extents[id(container)] = depth, size

    # -- the instructions ----------------------------------------------------------------------------------------------

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def put(self, form: str) -> None:
        self.memo[self._number(form)] = self.stack[-1]

    def get(self, form: str) -> None:
        self._push(self.memo[self._number(form)])

    def integer(self, form: str) -> None:
        self._push(self._number(form))

    def long(self) -> None:
        length = self._number("<B")
        if length > MAX_INTEGER_BYTES:
            raise PickleError(f"it has an integer of {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def real(self) -> None:
        self._push(struct.unpack(">d", self._take(8))[0])

    def text(self) -> None:
        self._push(self._take(self._number("<I")).decode("utf-8", "surrogatepass"))

    def short_text(self) -> None:
        self._push(self._take(self._number("<B")).decode("ascii"))

    def tuple_of(self, count: int) -> None:
        values = tuple(reversed([self._pop() for _ in range(count)]))
        self._new(values, values)

    def tuple_to_mark(self) -> None:
        values = tuple(self._to_mark())
        self._new(values, values)

    def append(self, values: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleError("it appends to something that isn't a list")
        self._hold(target, values)
        target += values

    def set_items(self, flat: Sequence[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(flat) % 2:
            raise PickleError("it sets entries of something that isn't a dict")
        if not all(type(key) is str for key in flat[::2]):
            kind = next(type(key).__name__ for key in flat[::2] if type(key) is not str)
            raise PickleError(f"it has a dict with a key of type {kind} instead of a text")
        self._hold(target, flat)
        target |= zip(flat[::2], flat[1::2], strict=True)

    def name(self) -> None:
        module, name = self._line(), self._line()
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self.names:
            raise ForeignNameError(full)
        self._push(self.names[full])

    def call(self) -> None:
        values, called = self._pop(), self._pop()
        if not isinstance(called, _Global) or type(values) is not tuple:
            raise PickleError("it calls something that isn't a function")
        self.texts -= sum(len(value) for value in values if isinstance(value, str | bytes))
        if self.texts < 0:
            raise PickleError("it passes too many characters to functions")
        made = called.make(*values)
        if isinstance(made, int | str | bytes | TensorRecord):
            self._push(made)
        else:
            self._new(made, values)

    def build(self) -> None:
        state, target = self._pop(), self.stack[-1]
        if not hasattr(target, "__setstate__"):
            raise PickleError("it sets the state of an object that has none")
        self._hold(target, [state])
        target.__setstate__(state)

    def stored(self) -> None:
        named = self._pop()
        if type(named) is not tuple or len(named) < 5 or named[0] != "storage" or not isinstance(named[1], _Type):
            raise PickleError("it refers to an external object that isn't a storage")
        _, kind, key, _, count = named[:5]
        if type(key) is not str or type(count) is not int or count < 0 or (len(named) > 5 and named[5] is not None):
            raise PickleError("it refers to a storage in a form that torch.save doesn't write")
        storage = Storage(key, kind.kind, count * kind.size)
        if self.storages.setdefault(key, storage) != storage:
            raise PickleError(f"it describes the storage {key[:40]!r} in two ways")
        self._push(storage)


# -- functions for globals ---------------------------------------------------------------------------------------------


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any = False, _hooks: Any = None, _more: Any = None
) -> TensorRecord:
    return _record(storage, storage.kind, offset, shape, strides)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any, _hooks: Any, kind: Any, _more: Any = None
) -> TensorRecord:
    if not isinstance(kind, _Type) or kind.bare:
        raise PickleError("it has a tensor without a type")
    return _record(storage, kind.kind, offset, shape, strides)


def _record(storage: Any, kind: str, offset: Any, shape: Any, strides: Any) -> TensorRecord:
    """Raises PickleError for a tensor that isn't within its storage."""
    numbers = (offset, *shape, *strides)
    if type(storage) is not Storage or not all(type(number) is int and number >= 0 for number in numbers):
        raise PickleError("it has a tensor without a valid shape or storage")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise PickleError("it has a tensor without a valid shape")
    there = storage.size // ELEMENT_BYTES[kind]
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if prod(shape) and (prod(shape) > there or last >= there):
        raise PickleError(
            f"it has a tensor of {'*'.join(map(str, shape))[:60]} elements, of which {there:,} are stored"
        )
    return TensorRecord(storage, kind, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, _gradient: Any, _hooks: Any) -> TensorRecord:
    if type(tensor) is not TensorRecord:
        raise PickleError("it has a parameter that isn't a tensor")
    return tensor


ELEMENT_BYTES = {**dict(STORAGES.values()), **BARE_TYPES}
"""Bytes of an element, by its type."""

_TYPES = {
    **{f"torch.{name}": _Type(kind, size) for name, (kind, size) in STORAGES.items()},
    **{f"torch.{kind}": _Type(kind, size) for kind, size in ELEMENT_BYTES.items()},
    "torch.storage.UntypedStorage": _Type("uint8", 1, bare=True),
}
_CONSTRUCTORS: Mapping[str, Constructor] = {
    "collections.OrderedDict": OrderedRecord,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
}

_INSTRUCTIONS: Mapping[bytes, Callable[[_PickleMachine], None]] = {
    b"(": _PickleMachine.mark,
    b"0": lambda machine: machine._pop() and None,
    b"N": lambda machine: machine._push(None),
    b"\x88": lambda machine: machine._push(True),
    b"\x89": lambda machine: machine._push(False),
    b"J": lambda machine: machine.integer("<i"),
    b"K": lambda machine: machine.integer("<B"),
    b"M": lambda machine: machine.integer("<H"),
    b"\x8a": _PickleMachine.long,
    b"G": _PickleMachine.real,
    b"X": _PickleMachine.text,
    b"U": _PickleMachine.short_text,
    b")": lambda machine: machine._new(()),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"t": _PickleMachine.tuple_to_mark,
    b"]": lambda machine: machine._new([]),
    b"}": lambda machine: machine._new({}),
    b"a": lambda machine: machine.append([machine._pop()]),
    b"e": lambda machine: machine.append(machine._to_mark()),
    b"s": lambda machine: machine.set_items([machine._pop(), machine._pop()][::-1]),
    b"u": lambda machine: machine.set_items(machine._to_mark()),
    b"q": lambda machine: machine.put("<B"),
    b"r": lambda machine: machine.put("<I"),
    b"h": lambda machine: machine.get("<B"),
    b"j": lambda machine: machine.get("<I"),
    b"c": _PickleMachine.name,
    b"R": _PickleMachine.call,
    b"b": _PickleMachine.build,
    b"Q": _PickleMachine.stored,
}
