"""A published file gives its pair, or the reason why not; nothing in it ever runs."""

from __future__ import annotations

import io
import os
import pickle
import re
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_data import fields, numbers, pack, publish, rezip, saved

from earl_cli.data.published.store import open_published
from earl_cli.data.store import Reject, TokenizedExample


def only(base: Path, content: bytes, codes: int = 32768) -> TokenizedExample | Reject:
    """What becomes of one file."""
    (row,) = open_published(publish(base, {"7.pth": content})).read(codes=codes)
    return row


def pickled(instructions: bytes) -> bytes:
    """A file of torch.save with these instructions as its pickle."""
    return rezip(saved([1]), lambda _content: b"\x80\x02" + instructions)


# -- good files --------------------------------------------------------------------------------------------------------


def test_pickles_of_numpy_1_are_read(tmp_path: Path) -> None:
    old = rezip(saved(fields(7)), lambda content: content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in old
    row = only(tmp_path, old)
    assert isinstance(row, TokenizedExample)
    assert np.array_equal(row.source, fields(7)["original_image"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "convert",
    [
        lambda codes: codes.astype(np.int32),
        lambda codes: codes.astype(">u2"),
        np.asfortranarray,
        lambda codes: codes[None],
        torch.from_numpy,
        lambda codes: torch.from_numpy(codes)[None].short(),
        lambda codes: torch.from_numpy(codes).to(torch.uint16),
        lambda codes: torch.from_numpy(np.asfortranarray(codes)).to(torch.int32),
    ],
)
def test_arrays_and_tensors_of_any_integers_are_read(tmp_path: Path, convert: Any, legacy: bool) -> None:
    codes = fields(7)["original_image"]
    found = convert(codes)
    legacy &= getattr(found, "dtype", None) != torch.uint16  # which torch itself can't read in the old format
    content = saved(fields(7, original_image=found), _use_new_zipfile_serialization=not legacy)
    row = only(tmp_path, content)
    assert isinstance(row, TokenizedExample), row
    assert np.array_equal(row.source, codes)


def test_instructions_and_thoughts_come_in_several_shapes(tmp_path: Path) -> None:
    def read(**changes: Any) -> TokenizedExample:
        row = only(tmp_path, saved(fields(7, **changes)))
        assert isinstance(row, TokenizedExample), row
        return row

    assert read(instruction=["first", "second"]).instruction == "first"
    assert read(instruction=np.array(["first", "second"], dtype=object)).instruction == "first"
    for empty in ({}, "", None, {"b": None}):
        assert read(CoT=empty).thoughts == {}
    assert read(CoT={"a": "", "b": None, "c": " x "}).thoughts == {"a": "", "c": " x "}
    without = fields(7)
    del without["CoT"], without["edit_id"]
    row = only(tmp_path, saved(without))
    assert isinstance(row, TokenizedExample)
    assert (row.id, row.thoughts) == ("7", {})
    assert read(edit_id="task/12.pth").id == "task/12"
    assert read(edit_id=12).id == "12"


# -- bad files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"original_image": np.full((2, 2), -1)}, "codes", "original_image has the code -1, outside of a codebook"),
        ({"edited_image": np.full((2, 2), 32768)}, "codes", "edited_image has the code 32768"),
        ({"edited_image": np.full((2, 2), 2**64 - 1, np.uint64)}, "codes", "has the code 18446744073709551615"),
        ({"original_image": np.zeros(5, int)}, "codes", "original_image is of 5 codes, not in rows"),
        ({"original_image": np.zeros((2, 3, 4), int)}, "codes", r"is of 2\*3\*4 codes, not in rows"),
        ({"original_image": np.array(5)}, "codes", "is of one codes"),
        ({"original_image": np.zeros((0, 4), int)}, "codes", r"is of 0\*4 codes"),
        ({"original_image": np.zeros((1, 10_000), np.uint8)}, "codes", r"1\*10000 codes, not 1 to 9999 a side"),
        (
            {"original_image": torch.zeros(1, dtype=int).expand(9000, 9000)},
            "pickle",
            r"9000\*9000 elements, of which 1 are",
        ),
        ({"original_image": np.zeros((2, 2))}, "codes", "is an array of 'f8', not of integers"),
        ({"original_image": np.array([["a"]])}, "codes", "is an array of 'U1', not of integers"),
        ({"original_image": np.array([[None]])}, "codes", "is an array of objects, not of integers"),
        ({"original_image": torch.zeros(2, 2)}, "codes", "is a tensor of float32, not of integers"),
        ({"original_image": [[1, 2]]}, "codes", "is a list, not an array"),
        ({"original_image": None}, "codes", "original_image is missing"),
        ({"instruction": None}, "instruction", "the instruction is empty"),
        ({"instruction": "  "}, "instruction", "the instruction is empty"),
        ({"instruction": []}, "instruction", "the instruction is a list"),
        ({"instruction": [3]}, "instruction", "the instruction is a int"),
        ({"instruction": "\ud800"}, "instruction", "not a text"),
        ({"instruction": np.array(["a"])}, "instruction", "the instruction is a numpy array, not a text"),
        ({"CoT": ["a"]}, "thoughts", "CoT is a list"),
        ({"CoT": {"a": 5}}, "thoughts", "an entry of CoT is str to int"),
        ({"CoT": {"a": "\ud800"}}, "thoughts", "not a text by its key"),
    ],
)
def test_a_bad_field_is_a_reject_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], kind: str, reason: str
) -> None:
    place = publish(
        tmp_path, {"1.pth": saved(fields(1)), "7.pth": saved(fields(7, **changes)), "2.pth": saved(fields(2))}
    )
    first, bad, last = open_published(place).read()
    assert isinstance(first, TokenizedExample)
    assert isinstance(last, TokenizedExample)
    assert isinstance(bad, Reject)
    assert (bad.row, bad.id) == (1, "7.pth")
    assert bad.kind == kind
    assert re.search(reason, bad.reason), bad.reason


def test_a_damaged_file_doesnt_stop_the_check(tmp_path: Path) -> None:
    whole = saved(fields(1))
    damaged = {f"cut {length}.pth": whole[:length] for length in (0, 1, 3, 500, len(whole) - 1)}
    damaged["text.pth"] = b"Not found\n"
    damaged["plain pickle.pth"] = pickle.dumps({"edit_id": "1"}, protocol=2)
    damaged["new pickle.pth"] = pickle.dumps({"edit_id": "1"})
    damaged["cut legacy.pth"] = saved(fields(1), _use_new_zipfile_serialization=False)[:-300]
    damaged["packed.pth"] = rezip(whole, lambda content: content, zipfile.ZIP_DEFLATED)
    damaged["odd.pth"] = rezip(whole, lambda content: content[:-1])
    place = publish(tmp_path, damaged | {"whole.pth": whole, "list.pth": saved([1, 2])})
    *bad, good, listed = open_published(place).read()
    assert isinstance(good, TokenizedExample)
    assert {row.kind for row in bad if isinstance(row, Reject)} == {"pickle"}
    assert len(bad) == len(damaged)
    assert isinstance(listed, Reject)
    assert (listed.kind, listed.reason) == ("fields", "it holds a list, not a dict of fields")


# -- hostile files -----------------------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


EVIL_FORMS: dict[str, Callable[[Any], bytes]] = {
    "torch": saved,
    "legacy": lambda content: saved(content, _use_new_zipfile_serialization=False),
    "protocol 0": lambda content: saved(content, pickle_protocol=0),
    "protocol 4": lambda content: saved(content, pickle_protocol=4),
    "bare 2": lambda content: pickle.dumps(content, protocol=2),
    "bare 5": pickle.dumps,
    "cut": lambda content: pickle.dumps(content)[:-1],
}


@pytest.mark.parametrize("form", EVIL_FORMS)
@pytest.mark.parametrize("archived", [False, True])
def test_a_file_that_could_run_code_is_rejected_alone(tmp_path: Path, form: str, archived: bool) -> None:
    marker = tmp_path / "marker"
    evil = EVIL_FORMS[form](fields(7, instruction=Evil(marker)))
    place = publish(tmp_path / "x", {"evil.pth": evil} | numbers(1, 2))
    if archived:
        place = pack(place, tmp_path / "x.tar.gz", "x/")
    rows = sorted(open_published(place).read(), key=lambda row: row.id)
    assert [type(row) for row in rows] == [TokenizedExample, TokenizedExample, Reject]
    assert not marker.exists()
    if form in ("torch", "legacy"):
        assert isinstance(rows[2], Reject)
        assert rows[2].kind == "unsafe"
        assert re.match(r"this file refers to '(posix|nt)\.system', which could run code", rows[2].reason)
    if form == "torch":  # and that it would have run
        torch.load(io.BytesIO(evil), weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("name", ["numpy.f2py\nrun", "builtins\nbytearray", "torch.nn.parameter\nParameter"])
def test_names_other_than_those_of_arrays_are_refused(tmp_path: Path, name: str) -> None:
    row = only(tmp_path, pickled(f"c{name}\n.".encode("latin1")))
    assert isinstance(row, Reject)
    assert f"refers to '{name.replace(chr(10), '.')}'" in row.reason


def test_a_false_data_type_never_reaches_numpy(tmp_path: Path) -> None:
    """Eight bytes called an object by a field whose flags deny it: numpy would follow them as an address."""
    kind = (
        b"cnumpy\ndtype\nX\2\0\0\0V8\x89\x88\x87R(K\3X\1\0\0\0|NX\1\0\0\0a\x85}X\1\0\0\0a"
        b"cnumpy\ndtype\nX\2\0\0\0O8\x89\x88\x87RK\0\x86sK\x08K\1K\x10tb"
    )
    array = (
        b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85X\1\0\0\0b\x87R"
        b"(K\1K\1\x85" + kind + b"\x89c_codecs\nencode\nX\x08\0\0\0AAAAAAAAX\6\0\0\0latin1\x86Rtb"
    )
    text = b"X\x0b\0\0\0instructionX\2\0\0\0doX\x0e\0\0\0original_image"
    row = only(tmp_path, pickled(b"}(" + text + array + b"u."))
    assert isinstance(row, Reject)
    assert (row.kind, row.reason) == ("codes", "original_image is an array of 'V8', not of integers")


def test_a_false_shape_is_refused(tmp_path: Path) -> None:
    old = saved(fields(7))
    for shape in (b"K\x09K\x04", b"J\xff\xff\xff\xffK\x04", b"N\x89", b"]]"):
        row = only(tmp_path, rezip(old, lambda content, shape=shape: content.replace(b"K\x03K\x04", shape)))
        assert isinstance(row, Reject), shape
        assert row.kind == "codes"


MEMO_BOMB = b")q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
BIG_TEXT = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000
UTF_16 = b"X\6\0\0\0utf-16"
LATIN_1 = b"X\6\0\0\0latin1"
ENCODE = b"c_codecs\nencode\n"

HOSTILE = {
    "values that double": (b"(" + MEMO_BOMB.replace(b")q\0", b"K\1q\0", 1) + b"t.", "more than 1,000,000 values"),
    "a key that doubles": (b"}" + MEMO_BOMB.replace(b")q\0", b"K\1q\0", 1) + b"Ns.", "expands to more|left over"),
    "a key that is a tuple": (b"}K\1\x85Ns.", "a key of type tuple instead of a text"),
    "nested tuples": (b")" + b"\x85" * 300_000 + b".", "nested more than 100 deep"),
    "nested lists": (b"]" * 300_000 + b"a" * 299_999 + b".", "nested more than 100 deep"),
    "nested from within": (b"]q\0" + b"]q\1h\0h\1a0h\1q\0" * 300 + b".", "inside another one|nested|left over"),
    "a list in itself": (b"]q\0h\0a.", "inside another one|nested"),
    "endless instructions": (b"N0" * 600_000 + b"N.", "more than 1,000,000 instructions"),
    "bytes in another encoding": (ENCODE + BIG_TEXT + UTF_16 + b"\x86R.", "encoded as 'utf-16', not as latin1"),
    "bytes made again and again": (
        ENCODE + b"q\0" + BIG_TEXT + b"q\1" + LATIN_1 + b"\x86q\2R" + b"0h\0h\2R" * 10_000 + b".",
        "too many characters",
    ),
    "a long integer": (b"\x8b\xff\xff\xff\x7f" + b"a" * 100, "which torch.save never writes"),
    "an integer of 255 bytes": (b"\x8a\xff" + b"a" * 255 + b".", "an integer of 255 bytes"),
    "bytes of a length beyond the file": (b"\x8e" + b"\xff" * 8, "which torch.save never writes"),
    "a text of a length beyond the file": (b"X\xff\xff\xff\x7f", "cut short"),
    "a frame": (b"\x95" + b"\xff" * 8 + b"N.", "which torch.save never writes"),
    "an extension": (b"\x82\1.", "which torch.save never writes"),
    "an instance": (b"(ios\nsystem\n.", "which torch.save never writes"),
    "a call of a text": (b"X\1\0\0\0a)R.", "calls something that isn't a function"),
    "a state of a text": (b"X\1\0\0\0a}b.", "sets the state of an object that has none"),
    "a memo that isn't there": (b"h\7.", "damaged"),
    "no stack": (b"\x85.", "damaged"),
    "nothing": (b"", "cut short"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_a_reject_at_once(tmp_path: Path, name: str) -> None:
    """A few bytes that hang, crash or fill a machine when they are unpickled."""
    content, reason = HOSTILE[name]
    place = publish(tmp_path, {"hostile.pth": pickled(content)} | numbers(1))
    began = time.process_time()
    bad, good = open_published(place).read()
    assert time.process_time() - began < 5
    assert isinstance(good, TokenizedExample)
    assert isinstance(bad, Reject)
    assert bad.kind == "pickle"
    assert re.search(reason, bad.reason), bad.reason
    assert "weights_only" not in bad.reason


def test_a_hostile_archive_is_a_reject(tmp_path: Path) -> None:
    whole = saved(fields(1, original_image=torch.zeros(3, 4, dtype=torch.int64)))
    end = whole[-22:]
    directory = whole.rindex(b"PK\6\6") + 40  # where the archive's 64-bit end says how large it is, and where

    def twice() -> bytes:
        stream = io.BytesIO(whole)
        with warnings.catch_warnings(), zipfile.ZipFile(stream, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr("archive/data.pkl", b"\x80\x02N.")
        return stream.getvalue()

    hostile = {
        "two pickles": twice(),
        "a storage of another size": rezip(whole, lambda content: content.replace(b"K\x0c", b"K\x0d")),
        "a storage that isn't there": rezip(whole, lambda content: content.replace(b"X\1\0\0\x000", b"X\1\0\0\x009")),
        "a size beyond the file": whole.replace(b"\x60\0\0\0\x60\0\0\0", b"\xff\xff\xff\x7f" * 2),
        "a directory beyond the file": whole[:directory] + b"\xff" * 15 + b"\x7f" + whole[directory + 16 :],
        "100,001 members": whole[:-22] + b"PK\x01\x02" * 100_001 + end,
    }
    place = publish(tmp_path, {f"{name}.pth": content for name, content in hostile.items()})
    for row in open_published(place).read():
        assert isinstance(row, Reject), row
        assert row.kind in ("pickle", "codes")


@pytest.mark.parametrize("codes", [np.arange(12).reshape(3, 4), torch.arange(12).reshape(3, 4)])
def test_a_flipped_bit_is_detected(tmp_path: Path, codes: Any) -> None:
    whole = saved(fields(1, original_image=codes))
    spelled = (
        "".join(map(chr, np.arange(12).tobytes())).encode()
        if isinstance(codes, np.ndarray)
        else codes.numpy().tobytes()
    )
    place = whole.index(spelled)
    row = only(tmp_path, whole[:place] + b"\1" + whole[place + 1 :])
    assert isinstance(row, Reject)
    assert "its bytes are damaged" in row.reason


def test_tensors_that_declare_more_than_they_have_do_not_fill_a_shard(tmp_path: Path) -> None:
    content = saved(fields(1, original_image=torch.zeros(1, dtype=torch.uint8).expand(9999, 9999)))
    assert len(content) < 10_000
    row = only(tmp_path, content)
    assert isinstance(row, Reject)
    assert "9999*9999 elements, of which 1 are stored" in row.reason
