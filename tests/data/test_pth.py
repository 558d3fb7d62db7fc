"""A published file gives its pair, or the reason why not; nothing in it ever runs."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_data import fields, numbers, pack, publish, rezip, saved

from earl_cli.data.published import open_published, published_table
from earl_cli.data.store import Reject, TokenizedPair
from earl_cli.errors import InputError


def only(base: Path, content: bytes, codes: int = 32768) -> TokenizedPair | Reject:
    """What becomes of one file."""
    (row,) = open_published(publish(base, {"7.pth": content})).read(codes=codes)
    return row


# -- good files --------------------------------------------------------------------------------------------------------


def test_pickles_of_numpy_1_are_read(tmp_path: Path) -> None:
    old = rezip(saved(fields(7)), lambda content: content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in old
    row = only(tmp_path, old)
    assert isinstance(row, TokenizedPair)
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
    assert isinstance(row, TokenizedPair), row
    assert np.array_equal(row.source, codes)


def test_instructions_and_thoughts_come_in_several_shapes(tmp_path: Path) -> None:
    def read(**changes: Any) -> TokenizedPair:
        row = only(tmp_path, saved(fields(7, **changes)))
        assert isinstance(row, TokenizedPair), row
        return row

    assert read(instruction=["first", "second"]).instruction == "first"
    assert read(instruction=np.array(["first", "second"], dtype=object)).instruction == "first"
    for empty in ({}, "", None, {"b": None}):
        assert read(CoT=empty).thoughts == {}
    assert read(CoT={"a": "", "b": None, "c": " x "}).thoughts == {"a": "", "c": " x "}
    without = fields(7)
    del without["CoT"], without["edit_id"]
    row = only(tmp_path, saved(without))
    assert isinstance(row, TokenizedPair)
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
        ({"original_image": torch.zeros(1, dtype=int).expand(10_000, 10_000)}, "codes", "not 1 to 9999 a side"),
        ({"original_image": np.zeros((2, 2))}, "codes", "is an array of 'f8', not of integers"),
        ({"original_image": np.array([["a"]])}, "codes", "is an array of 'U1', not of integers"),
        ({"original_image": np.array([[None]])}, "codes", "is an array of objects, not of integers"),
        ({"original_image": torch.zeros(2, 2)}, "codes", "is a tensor of torch.float32, not of integers"),
        ({"original_image": [[1, 2]]}, "codes", "is a list, not an array"),
        ({"original_image": None}, "codes", "original_image is missing"),
        ({"instruction": None}, "instruction", "the instruction is empty"),
        ({"instruction": "  "}, "instruction", "the instruction is empty"),
        ({"instruction": []}, "instruction", "the instruction is a list"),
        ({"instruction": [3]}, "instruction", "the instruction is a int"),
        ({"instruction": "\ud800"}, "instruction", "not a text"),
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
    assert isinstance(first, TokenizedPair)
    assert isinstance(last, TokenizedPair)
    assert isinstance(bad, Reject)
    assert (bad.row, bad.id) == (1, "7.pth")
    assert bad.kind == kind
    assert re.search(reason, bad.reason), bad.reason


def test_a_damaged_file_stops_nothing(tmp_path: Path) -> None:
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
    assert isinstance(good, TokenizedPair)
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
def test_a_file_that_could_run_code_is_refused_by_name_and_not_run(tmp_path: Path, form: str, archived: bool) -> None:
    marker = tmp_path / "marker"
    evil = EVIL_FORMS[form](fields(7, instruction=Evil(marker)))
    place = publish(tmp_path / "x", numbers(1) | {"evil.pth": evil} | numbers(2))
    if archived:
        place = pack(place, tmp_path / "x.tar.gz", "x/")
    with pytest.raises(InputError, match=r"evil\.pth: this file asks for '(posix|nt)\.system'"):
        list(open_published(place).read())
    with pytest.raises(InputError, match=r"evil\.pth"):
        published_table(open_published(place))
    assert not marker.exists()
    if form == "torch":  # and that it would have run
        torch.load(io.BytesIO(evil), weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("name", ["numpy.f2py\nrun", "builtins\nbytearray", "torch.nn.parameter\nParameter"])
def test_nothing_but_arrays_and_texts_may_be_asked_for(tmp_path: Path, name: str) -> None:
    content = rezip(saved([1]), lambda _content: f"\x80\x02c{name}\n.".encode("latin1"))
    with pytest.raises(InputError, match=f"asks for '{name.replace(chr(10), '.')}'"):
        only(tmp_path, content)


def test_a_data_type_that_lies_never_reaches_numpy(tmp_path: Path) -> None:
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
    row = only(tmp_path, rezip(saved([1]), lambda _content: b"\x80\x02}(" + text + array + b"u."))
    assert isinstance(row, Reject)
    assert (row.kind, row.reason) == ("codes", "original_image is an array of 'V8', not of integers")


def test_a_shape_that_lies_is_refused(tmp_path: Path) -> None:
    old = saved(fields(7))
    for shape in (b"K\x09K\x04", b"J\xff\xff\xff\xffK\x04", b"N\x89", b"]]"):
        row = only(tmp_path, rezip(old, lambda content, shape=shape: content.replace(b"K\x03K\x04", shape)))
        assert isinstance(row, Reject), shape
        assert row.kind == "codes"
