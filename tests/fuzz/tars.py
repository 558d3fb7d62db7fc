"""Tars of samples, and of published data."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

from fuzz.tables import PICTURE
from fuzz.tables import read as read_samples
from fuzzing import Room
from published_data import LIST, numbers

from earl_cli.data.published.store import open_published
from earl_cli.data.store import TokenizedExample
from earl_cli.errors import EarlError

ACCENTS = "\u00e9" * 90


def _tar(files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _good() -> dict[str, bytes]:
    about = json.dumps({"instruction": "make it snowy"}).encode()
    samples = {
        f"{key}.{suffix}": content
        for key in "abc"
        for suffix, content in (("source.png", PICTURE), ("edited.png", PICTURE), ("json", about))
    }
    listing = json.dumps({"prefix": "x", "path_list": ["1.pth", "2.pth", "3.pth"]}).encode()
    published = _tar({LIST: listing, **{f"feature/{name}": content for name, content in numbers(1, 2).items()}})
    return {
        "a.tar": _tar(samples),
        "b.tar": _tar({f"{'long' * 30}/{name}": content for name, content in samples.items()}, tarfile.GNU_FORMAT),
        "c.tar": _tar({f"{ACCENTS}/{name}": content for name, content in samples.items()}, tarfile.PAX_FORMAT),
        "published.tar": published,
        "published.tar.gz": gzip.compress(published),
    }


SNIPPETS = (
    b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"77777777777\0", b"-1         \0", b"../../x", b"/etc/passwd", b"L", b"K",
    b"S", b"x", b"g", b"1", b"2", b"30 size=99999999999999999\n", b"20 path=../../../x\n", b"22 GNU.sparse.size=9\n",
    b"26 GNU.sparse.map=0,1,2\n", b"\0" * 1024, b"ustar\0" + b"00", b"\xed\xa0\x80", b"99999999999 a=b\n", b"0 a=\n",
)  # fmt: skip
BLOCK = tarfile.TarInfo("././@LongLink")
BLOCK.type = tarfile.GNUTYPE_LONGNAME
HOSTILE = [
    ("a.tar", BLOCK.tobuf(tarfile.GNU_FORMAT) * 20_000),
    ("published.tar.gz", gzip.compress(bytes(100_000_000))),
    ("published.tar", _tar({LIST: b"[" * 1_000_000})),
    ("published.tar", _tar({LIST: json.dumps({"path_list": ["\ud800"]}).encode()})),
    ("published.tar", _tar({LIST: b'{"path_list": [' + b'"a",' * 100_000 + b'"b"]}'})),
]


def read(name: str, content: bytes, folder: Path) -> str:
    if not name.startswith("published"):
        return read_samples(name, content, folder)
    (folder / name).write_bytes(content)
    found = list(open_published(folder / name).read())
    return "rows" if any(isinstance(row, TokenizedExample) for row in found) else "rejects"


ROOM = Room("tars", _good(), read, (EarlError,), SNIPPETS, HOSTILE, 300)
