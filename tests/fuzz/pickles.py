"""Published `.pth` files, and weights in a `.bin`: the files, and the pickles in them."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from fuzzing import Room
from published_data import fields, rezip, saved

from earl_cli.data.published.pth import read_pth
from earl_cli.errors import EarlError
from earl_cli.models.weights import open_weights

CODES = torch.arange(12).reshape(3, 4)
STATE = {"a.weight": torch.zeros(3, 4), "b": torch.ones(2).bfloat16(), "c": torch.zeros(2, dtype=torch.uint16)}
FILES = {
    "numpy.pth": saved(fields(1)),
    "torch.pth": saved(fields(1, original_image=CODES, edited_image=CODES[None].to(torch.uint16))),
    "objects.pth": saved(fields(1, instruction=np.array(["a", "b"], dtype=object), edit_id=7)),
    "old.pth": saved(fields(1, original_image=CODES), _use_new_zipfile_serialization=False),
    "state.bin": saved(STATE),
    "old.bin": saved({**STATE, "c": torch.nn.Parameter(torch.zeros(2))}, _use_new_zipfile_serialization=False),
}


def _pickle(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("archive/data.pkl")


GOOD = {**FILES, **{f"pickle of {name}": _pickle(file) for name, file in FILES.items() if not name.startswith("old")}}
INSTRUCTIONS = b"( ) ] } t u s e a R b Q 0 2 N . q\0 h\0 \x85 \x86 \x81 \x93 \x82\1 \x83\1\0 \x84\1\0\0\0 I1\n L9L\n"
NAMES = b"cposix|system| cbuiltins|eval| ios|system| c_codecs|encode| cnumpy|dtype| ctorch|FloatStorage|"
SNIPPETS = (
    *INSTRUCTIONS.split(b" "),
    *NAMES.replace(b"|", b"\n").split(b" "),
    *(
        b"X\6\0\0\0latin1",
        b"X\3\0\0\0hex",
        b"X\x08\0\0\0punycode",
        b"X\2\0\0\0O8",
        b"X\xff\xff\xff\x7f",
        b"J\xff\xff\xff\x7f",
    ),
    *(b"\x8a\xff" + b"\xff" * 255, b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8),
    *(b"\x85" * 5000, b"]" * 5000, b"q\1h\1h\1\x86" * 40, b"G\x7f\xf0\0\0\0\0\0\0"),
    *(b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"../data.pkl", b"/data.pkl"),
)
HOSTILE = [("numpy.pth", pickle.dumps(fields(1), protocol=protocol)) for protocol in range(6)] + [
    ("pickle of numpy.pth", b"\x80\2" + b"(" * 2_000_000),
    ("pickle of numpy.pth", b"\x80\2" + b"]" * 2_000_000),
    ("pickle of numpy.pth", b"\x80\2)" + b"\x85" * 2_000_000),
    ("pickle of numpy.pth", b"\x80\2}" + b"X\1\0\0\0a]s" * 200_000 + b"."),
    ("pickle of state.bin", b"\x80\2" + b"N0" * 2_000_000),
]


def read(name: str, content: bytes, folder: Path) -> str:
    if name.startswith("pickle of "):
        name = name.removeprefix("pickle of ")
        content = rezip(FILES[name], lambda _pickle: content)
    if name.endswith(".pth"):
        read_pth(content, 0, name, name, 32768)
        return "pair"
    (folder / "a.bin").write_bytes(content)
    with open_weights(folder / "a.bin") as (stored, load):
        for weight in stored:
            load(weight).sum()
    return "weights"


ROOM = Room("pickles", GOOD, read, (EarlError,), SNIPPETS, HOSTILE, 600)
