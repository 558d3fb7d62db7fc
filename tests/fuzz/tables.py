"""Lists, tables and Parquet as `earl tokenize` reads them, up to the images at the model's size and the rejects."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import Room
from image_files import file_of
from PIL import Image

from earl_cli.data.columns import ExampleColumns, find_columns
from earl_cli.data.preprocess import PreprocessSettings, prepare
from earl_cli.data.shard_plan import RowOrder
from earl_cli.data.sources.base import Source
from earl_cli.data.sources.registry import DataLocation, open_source
from earl_cli.data.store import Reject, write_shard
from earl_cli.errors import EarlError

PICTURE = file_of(Image.new("RGB", (8, 8), "red"))
ROWS = [
    {"id": str(number), "source": "a.png", "edited": "a.png", "instruction": "make it snowy"} for number in range(4)
]


def _good() -> dict[str, bytes]:
    table = pa.table(
        {
            "source": pa.array([{"bytes": PICTURE, "path": None}] * 4),
            "edited": pa.array([PICTURE] * 4),
            "instruction": ["a", "b", '["c", "d"]', "e"],
            "id": [1, 2, 3, 4],
            "plan": pa.array([["x"], None, [], ["y", "z"]]),
        }
    )
    files = {}
    for name, options in (
        ("a", {}),
        ("b", {"compression": "zstd", "row_group_size": 2}),
        ("c", {"use_dictionary": False}),
    ):
        stream = io.BytesIO()
        pq.write_table(table, stream, **options)
        files[f"{name}.parquet"] = stream.getvalue()
    cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    return {
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
        "a.json": json.dumps(ROWS, indent=1).encode(),
        "a.csv": "\n".join(",".join(row) for row in cells).encode(),
        "b.csv": "\r\n".join(";".join(f'"{cell}"' for cell in row) for row in cells).encode("utf-16"),
        "a.tsv": "\n".join("\t".join(row) for row in cells).encode(),
        **files,
    }


SNIPPETS = (
    b'"\\ud800"', b'{"source": "\\ud800.png"}', b"[" * 5000, b"9" * 6000, b"\\u0000", b'"', b'"""', b"\n", b"\r",
    b"\0", b"../../etc/passwd", b"/dev/zero", b"/dev/stdin", b"file:///etc/passwd", b"http://127.0.0.1:1/", b"data:,",
    b"~", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"[[[[[[", b"{}" * 50, b'["' + b"a'," * 3000, b"NaN",
    b"1e999", b'{"id": {"a": [1]}, "source": ["a.png"], "edited": {"path": "a.png"}, "instruction": [["a"]]}',
)  # fmt: skip
HOSTILE = [
    ("a.jsonl", json.dumps(ROWS[0]).encode() + b"\n" + b"[" * 1_000_000),
    ("a.json", b"[" + b'{"source":' * 100_000),
    ("a.csv", b"source,edited,instruction\na.png,a.png,[" + b"-" * 9000 + b"1]"),
    ("a.csv", b"source,edited,instruction\n" + b'a.png,a.png,"[' + b"(" * 9000),
    ("a.csv", b",".join(b"c%d" % n for n in range(100_000)) + b"\n1"),
    ("a.csv", b"source,edited,instruction\n" + b'"' * 1_000_001),
]


def read(name: str, content: bytes, folder: Path) -> str:
    (folder / name).write_bytes(content)
    (folder / "a.png").write_bytes(PICTURE)
    return prepared(open_source(DataLocation(str(folder / name))), folder)


def prepared(source: Source, folder: Path) -> str:
    """What becomes of the rows of a source."""
    recipe = PreprocessSettings(
        source, find_columns(ExampleColumns(thoughts=("plan",) if "plan" in source.columns else ()), source), 64, 8
    )
    order = RowOrder(source.bounds, None, 50)
    rows = [row for chunk in order.chunks(0, len(order)) for row in prepare(recipe, chunk)]
    rejects = [row for row in rows if isinstance(row, Reject)]
    write_shard(folder, 0, [], rejects)
    return "rows" if len(rejects) < len(rows) else "rejects"


ROOM = Room("tables", _good(), read, (EarlError,), SNIPPETS, HOSTILE, 300)
