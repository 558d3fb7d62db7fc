"""Weight files: safetensors, sharded or not, and PyTorch's `.bin` read as plain tensors. No pickled code runs."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from earl_cli.console import listed
from earl_cli.errors import ModelError, first_line
from earl_cli.files import atomic_write, loads
from earl_cli.models.pickles import ForeignNameError, PickleError, TensorRecord
from earl_cli.models.torch_files import ZIP_MAGIC, read_torch_file

MAX_SHARD_BYTES = 5_000_000_000
MAX_LISTED = 3  # of many files, in a message

MAX_HEADER_BYTES = MAX_JSON_BYTES = 25_000_000
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of an element, by safetensors' names of types."""
_WHOLE_FILE_BYTES = 256_000_000
_STEMS = (("model", "safetensors"), ("pytorch_model", "bin"))
_REDOWNLOAD = "copy or download it again"
_PATTERN, _INDEX = "model{suffix}.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightInfo:
    """A weight as the file's header describes it: shape and dtype (as safetensors spells it, for instance "BF16")."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights, safetensors before `.bin`. Raises ModelError if any is missing."""
    for stem, suffix in _STEMS:
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or not all(_plain_name(file) for file in places.values()):
                raise ModelError("the index doesn't list weight files", where=str(index), hint=_REDOWNLOAD)
            files = sorted(set(places.values()))
            missing = [file for file in files if not os.path.isfile(folder / file)]  # noqa: PTH113  # of names of any length
            if missing:
                what = f"{len(missing)} of {len(files)} weight files are missing: {listed(missing, MAX_LISTED)}"
                raise ModelError(what, where=str(folder), hint=_REDOWNLOAD)
            return tuple(folder / file for file in files)
        if (folder / f"{stem}.{suffix}").is_file():
            return (folder / f"{stem}.{suffix}",)
    raise ModelError("there are no weights: neither model.safetensors nor pytorch_model.bin", where=str(folder))


def read_header(file: Path) -> dict[str, WeightInfo]:
    """Names, shapes and types in a safetensors file, whose bytes follow each other without a gap to the file's end.

    Raises ModelError if it is no such file, damaged, or cut short.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = stream.read(length) if 0 < length <= min(size, MAX_HEADER_BYTES) else b""
    if size < 1024 and b"git-lfs" in file.read_bytes():
        raise ModelError("this is a Git LFS pointer, not the weights", where=str(file), hint="run `git lfs pull`")
    if len(text) < max(length, 1):
        raise ModelError("this is no complete safetensors file", where=str(file), hint=_REDOWNLOAD)
    try:
        entries = {name: entry for name, entry in loads(text).items() if name != "__metadata__"}
        found = {name: _described(entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelError(
            "the header of this safetensors file can't be read", where=str(file), hint=_REDOWNLOAD
        ) from None
    place = 0
    for name, (stored, begin, end) in sorted(found.items(), key=lambda item: item[1][1:]):
        if begin != place or end - begin != stored.count * _BITS[stored.dtype] // 8:
            what = f"the header of this safetensors file contradicts itself: {name[:80]!r} is of another size"
            raise ModelError(what, where=str(file), hint=_REDOWNLOAD)
        place = end
    if size < 8 + length + place:
        what = f"the file is cut short: {size:,} of {8 + length + place:,} bytes are there"
        raise ModelError(what, where=str(file), hint=_REDOWNLOAD)
    return {name: stored for name, (stored, _, _) in found.items()}


def _described(entry: dict[str, Any]) -> tuple[WeightInfo, int, int]:
    """An entry of a header, and where its bytes begin and end. Raises ValueError for an invalid entry."""
    shape, kind, (begin, end) = entry["shape"], entry["dtype"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or kind not in _BITS:
        raise ValueError
    return WeightInfo(tuple(shape), kind), begin, end


@contextmanager
def open_weights(file: Path, device: str = "cpu") -> Iterator[tuple[dict[str, WeightInfo], Callable[[str], Tensor]]]:
    """What a weight file holds, and a function that reads one weight by its name, safetensors straight to ``device``.

    Raises ModelError for a damaged file, or a `.bin` with anything but tensors in it.
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        stored = read_header(file)
        try:
            with safe_open(file, framework="pt", device=device) as handle:
                yield stored, handle.get_tensor
        except SafetensorError as error:
            raise ModelError(f"the weights can't be read: {error}", where=str(file), hint=_REDOWNLOAD) from None
        return
    archived = _check_pickle(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=archived)
    except pickle.UnpicklingError:  # its message recommends unsafe loading
        raise ModelError("the weights can't be read", where=str(file), hint="ask its author for safetensors") from None
    except Exception as error:  # torch raises many types for invalid arguments
        raise ModelError(f"the weights can't be read: {first_line(error)}", where=str(file), hint=_REDOWNLOAD) from None
    if not isinstance(state, dict) or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise ModelError("this file holds no state dict of tensors", where=str(file))
    yield {name: WeightInfo(tuple(w.shape), str(w.dtype)) for name, w in state.items()}, state.__getitem__


def _check_pickle(file: Path) -> bool:
    """Check a `.bin` before torch reads it; returns whether it is a zip archive.

    Raises ModelError for anything but a dict of tensors, and for contents that could hang or crash the process or fill
    the memory.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            saved = read_torch_file(content, {})
            archived = content[: len(ZIP_MAGIC)] == ZIP_MAGIC
            if not isinstance(saved.value, dict):
                raise ModelError("this file holds no state dict of tensors", where=str(file))
            for weight in saved.value.values():
                if not isinstance(weight, TensorRecord):
                    raise ModelError("this file holds no state dict of tensors", where=str(file))
                saved.find_storage(weight.storage)
            if archived:
                reader = torch._C.PyTorchFileReader(str(file))
                same = reader.get_record_size("data.pkl") == len(saved.pickle)
                if not same or reader.get_record("data.pkl") != saved.pickle:
                    raise PickleError("readers of zip archives would disagree on its contents")
            return archived
    except ForeignNameError as error:
        what = f"the file holds more than tensors: it asks for {error.name[:80]!r}, and reading it would run code"
        raise ModelError(what, where=str(file), hint="ask its author for safetensors") from None
    except (PickleError, RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"the weights can't be read: {first_line(error)}", where=str(file), hint=_REDOWNLOAD) from None


def write_weights(folder: Path, state: Mapping[str, Tensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> tuple[str, ...]:
    """Writes model.safetensors, or numbered shards and their index if it is larger than one; returns the file names.

    Each file is written aside and renamed. Shared or non-contiguous tensors are written as copies. May raise OSError.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        state,  # type: ignore[arg-type]  # a mapping of tensors suffices
        get_storage_size=lambda weight: weight.nbytes,  # a view's storage would be the whole buffer
        filename_pattern=_PATTERN,
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        _write_safetensors(folder / file, {name: state[name] for name in names})
    if not split.is_sharded:
        return tuple(split.filename_to_tensors)
    places = dict(sorted(split.tensor_to_filename.items()))
    write_json(folder / _INDEX, {"metadata": split.metadata, "weight_map": places})
    return (*split.filename_to_tensors, _INDEX)


def fingerprint(files: Iterable[Path], *, extra: Iterable[str] = ()) -> str:
    """16 hexadecimal digits that name the exact contents of ``files`` and the texts ``extra``.

    Of a file above 256 MB only the size, the first and the last megabyte count, so that 16 GB need not be read.
    """
    digest = hashlib.sha256()
    for text in extra:
        digest.update(text.encode() + b"\0")
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_WHOLE_FILE_BYTES if size <= _WHOLE_FILE_BYTES else 1 << 20))
            if size > _WHOLE_FILE_BYTES:
                stream.seek(-(1 << 20), os.SEEK_END)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError if the file holds something else, or is larger than `MAX_JSON_BYTES`."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
        content = loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"this JSON can't be read: {error}", where=str(file), hint=_REDOWNLOAD) from None
    if not isinstance(content, dict):
        raise ModelError("this JSON is no object", where=str(file))
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes an object, indented, aside and then under its name."""
    with atomic_write(file) as aside:
        aside.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _plain_name(file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file


def _write_safetensors(file: Path, state: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    plain = {name: weight.detach().cpu().clone(memory_format=torch.contiguous_format) for name, weight in state.items()}
    with atomic_write(file) as aside:
        save_file(plain, aside, metadata={"format": "pt"})
