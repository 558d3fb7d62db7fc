"""The same pairs in every form in which data come."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROWS = 11
Form = Callable[[Path, list[dict[str, Any]]], Path]


def random_image(seed: int, size: tuple[int, int]) -> bytes:
    encoded = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(encoded, "PNG")
    return encoded.getvalue()


def rows_with_images(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows as they should be read: images as bytes; some sources occur twice."""
    rows = []
    for index in range(count):
        size = (40, 30) if index % 2 else (25, 50)
        rows.append(
            {
                "id": f"p{index}",
                "source": random_image(2 * (index if index != 2 else 0), size),
                "edited": random_image(2 * index + 1, size),
                "instruction": f"make it snowy, {index}",
                "plan": f"look\nat [{index}, 10, 20, 30], «there»",
            }
        )
    return rows


def _files(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (folder / "pictures").mkdir(parents=True)
    named = []
    for index, row in enumerate(rows):
        paths = {name: f"pictures/{index} {name}.png" for name in ("source", "edited")}
        for name, path in paths.items():
            (folder / path).write_bytes(row[name])
        named.append({**row, **paths})
    return named


def as_json_lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    named = _files(folder, rows)
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in named)
    (folder / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return folder


def as_json(folder: Path, rows: list[dict[str, Any]]) -> Path:
    text = json.dumps(_files(folder, rows), ensure_ascii=False, indent=2)
    (folder / "pairs.json").write_text(text, encoding="utf-8")
    return folder


def as_table(folder: Path, rows: list[dict[str, Any]], name: str = "pairs.csv", delimiter: str = ",") -> Path:
    named = _files(folder, rows)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(named[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(named)
    return folder / name


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    stored = [{**row, **{name: {"bytes": row[name], "path": None} for name in ("source", "edited")}} for row in rows]
    for number, part in enumerate((stored[:7], stored[7:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"train-{number}.parquet", row_group_size=3)
    return folder


def as_saved(folder: Path, rows: list[dict[str, Any]]) -> Path:
    from datasets import Dataset, Features, Image, Value

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    features = Features({name: Image() if name in ("source", "edited") else Value("string") for name in columns})
    Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
    return folder


def as_tars(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    for number, part in enumerate((rows[:6], rows[6:])):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as tar:
            for row in part:
                fields = {key: row[key] for key in ("id", "plan")}
                files = {"source.png": row["source"], "edited.png": row["edited"]}
                files |= {"json": json.dumps(fields).encode(), "instruction.txt": row["instruction"].encode()}
                for suffix, content in files.items():
                    member = tarfile.TarInfo(f"{'a' * 120}/{row['id']}.{suffix}")  # longer than a header holds
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


FORMS: dict[str, Form] = {
    "json lines": as_json_lines,
    "json": as_json,
    "csv": as_table,
    "tsv": lambda folder, rows: as_table(folder, rows, "pairs.tsv", "\t"),
    "parquet": as_parquet,
    "saved": as_saved,
    "tars": as_tars,
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """Writes rows into a folder in one of the forms, and names what to open."""
    return FORMS[request.param]
