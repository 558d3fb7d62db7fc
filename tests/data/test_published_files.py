"""Published data are found in folders and archives, and nothing makes them reach for files elsewhere."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_data import LIST, fields, numbers, pack, publish, saved

from earl_cli.data.published.files import is_published
from earl_cli.data.published.store import open_published
from earl_cli.data.store import Reject, TokenizedExample
from earl_cli.errors import InputError


@pytest.mark.parametrize("place", ["", "above", "above/train/" + LIST, "up.tar", "deep.tar", "deep.tar.gz", "dot.tgz"])
def test_a_folder_a_list_and_an_archive_hold_the_same(tmp_path: Path, place: str) -> None:
    base = publish(tmp_path / "above/train", numbers(3, 1, 2))
    pack(base, tmp_path / "up.tar")
    pack(base, tmp_path / "deep.tar", "train/")
    pack(base, tmp_path / "deep.tar.gz", "train/")
    pack(base, tmp_path / "dot.tgz", "./train/")
    found = tmp_path / place if place else base
    assert is_published(found)
    published = open_published(found)
    order = [3, 2, 1] if "tar" in place or "tgz" in place else [3, 1, 2]
    assert published.names == tuple(f"{number}.pth" for number in order)
    for number, row in zip(order, published.read(), strict=True):
        assert isinstance(row, TokenizedExample)
        assert (row.id, row.instruction) == (str(number), f"make it {number}")
        assert row.thoughts == {"reasoning": f"because {number}"}
        assert row.source.dtype == np.uint16
        assert np.array_equal(row.source, fields(number)["original_image"])
        assert np.array_equal(row.target, fields(number)["edited_image"])
    assert [row.row for row in published.read(1, 3)] == [1, 2]
    assert [row.id for row in published.read(1)] == [str(number) for number in order[1:]]


def test_the_list_is_found_from_its_own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(publish(tmp_path / "x", numbers(1)) / "list")
    assert len(open_published(Path("tokenized_datalist.json"))) == 1


def test_other_data_arent_published_data(tmp_path: Path) -> None:
    publish(tmp_path / "two/a", numbers(1))
    publish(tmp_path / "two/b", numbers(1))
    with pytest.raises(InputError, match="several folders hold tokenized data: a, b"):
        open_published(tmp_path / "two")
    (tmp_path / "none").mkdir()
    pack(tmp_path / "none", tmp_path / "none/x.tar")
    assert not is_published(tmp_path / "none")
    assert not is_published(tmp_path / "none/x.tar")
    with pytest.raises(InputError, match=r"give the path of one: x\.tar"):
        open_published(tmp_path / "none")
    with pytest.raises(InputError, match=r"there is no list/tokenized_datalist\.json"):
        open_published(tmp_path / "none/x.tar")
    with pytest.raises(InputError, match="no such file"):
        open_published(tmp_path / "nowhere")
    for content in ["{", "[]", '{"prefix": "a"}', '{"path_list": 5}', "[" * 100_000]:
        (tmp_path / "two/a" / LIST).write_text(content)
        with pytest.raises(InputError, match="not a list of tokenized data"):
            open_published(tmp_path / "two/a")


def test_the_last_part_of_the_prefix_names_the_folder(tmp_path: Path) -> None:
    publish(tmp_path / "x", numbers(1), prefix="/cluster/data/features_256/")
    (tmp_path / "x/feature").rename(tmp_path / "x/features_256")
    pack(tmp_path / "x", tmp_path / "x.tar.gz", "x/")
    for place in ("x", "x.tar.gz"):
        assert isinstance(next(open_published(tmp_path / place).read()), TokenizedExample)
    (tmp_path / "x/features_256").rename(tmp_path / "x/elsewhere")
    with pytest.raises(InputError, match=r"is there, such as '1\.pth'.*x, .*x/features_256, .*x/feature\)"):
        open_published(tmp_path / "x")


def lay(base: Path, names: Sequence[str], listed: Sequence[str], prefix: str = "/cluster/feature") -> Path:
    """Pairs 1, 2, … in files of these names, and a list with ``listed`` ones in ``base``."""
    base.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, 1):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(saved(fields(number)))
    (base / LIST).parent.mkdir(parents=True, exist_ok=True)
    (base / LIST).write_text(json.dumps({"prefix": prefix, "path_list": list(listed)}))
    return base


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["1.pth", "2.pth"], ["1.pth", "2.pth"]),  # beside list/
        (["feature/1.pth", "feature/2.pth"], ["feature/1.pth", "feature/2.pth"]),  # as the published RL takes them
        (["feature/1.pth", "feature/2.pth"], ["1.pth", "2.pth"]),
        (["1.pth", "feature/1.pth", "feature/2.pth"], ["1.pth", "2.pth"]),  # where more of them are
        (["sub/1.pth", "fu\u0308r.pth"], ["sub\\1.pth", "f\u00fcr.pth"]),  # as Windows and macOS spell them
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_found_relative_to_the_list(
    tmp_path: Path, names: list[str], listed: list[str], packed: bool
) -> None:
    base = lay(tmp_path / "x", names, listed)
    found = open_published(pack(base, tmp_path / "x.tar", "train/") if packed else base)
    assert all(isinstance(row, TokenizedExample) for row in found.read())
    assert len(found) == 2
    copied = lay(tmp_path / "y" / "feature", names, listed)  # the list's folder within that of the files
    assert open_published(copied.parent).names == tuple(listed)


@pytest.mark.skipif(os.sep != "/", reason="elsewhere a backslash is no part of a name")
def test_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    base = lay(tmp_path / "x", ["feature/a\\b.pth"], ["a\\b.pth"])
    assert [row.id for row in open_published(base).read()] == ["1"]


def test_the_prefix_comes_first_where_it_exists(tmp_path: Path) -> None:
    base = lay(tmp_path / "x", ["feature/2.pth", "1.pth"], ["1.pth"], prefix=str(tmp_path / "elsewhere" / "codes"))
    assert next(open_published(base).read()).id == "2"
    lay(tmp_path / "elsewhere", ["other", "unused", "codes/1.pth"], ["1.pth"])
    published = open_published(base)
    assert next(published.read()).id == "3"
    assert published.files.where == str(tmp_path / "elsewhere" / "codes")
    (tmp_path / "elsewhere" / "codes" / "1.pth").unlink()
    assert next(open_published(base).read()).id == "2"


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    place = publish(tmp_path / "x", numbers(1, 2))
    with (place / "feature/2.pth").open("r+b") as file:
        file.truncate(65 * 2**20)
    pack(place, tmp_path / "x.tar")
    for found in (place, tmp_path / "x.tar"):
        rows = {row.id: row for row in open_published(found).read()}
        large = rows["2.pth"]
        assert isinstance(large, Reject)
        assert (large.kind, large.reason) == ("size", "it has 68,157,440 bytes, more than 67,108,864")


def test_missing_and_repeated_files_are_rejects(tmp_path: Path) -> None:
    place = publish(tmp_path / "x", numbers(1, 2))
    listed = ["gone.pth", "2.pth", "1.pth", "./2.pth", "2.pth"]
    (place / LIST).write_text(json.dumps({"prefix": "", "path_list": listed}))
    pack(place, tmp_path / "x.tar.gz")
    rows = list(open_published(place).read())
    assert [row.kind if isinstance(row, Reject) else row.id for row in rows] == [
        "missing", "2", "1", "duplicate", "duplicate"
    ]  # fmt: skip
    rows = list(open_published(tmp_path / "x.tar.gz").read())
    assert [row.kind if isinstance(row, Reject) else row.id for row in rows] == [
        "2", "1", "missing", "duplicate", "duplicate"
    ]  # fmt: skip
    assert [row.row for row in rows] == [0, 1, 2, 3, 4]


# -- hostile names, links and archives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x.pth", "/etc/hosts", "a/../../x.pth", "", ".", "..", "a\0.pth", "\ud800.pth", 5, "..\\x.pth"]
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: Any) -> None:
    place = publish(tmp_path / "x", numbers(1))
    (place / LIST).write_text(json.dumps({"prefix": "/", "path_list": ["1.pth", name]}))
    quoted = re.escape(repr(name)) if isinstance(name, str) else "a int instead"
    for found in (place, pack(place, tmp_path / "x.tar")):
        with pytest.raises(InputError, match=quoted):
            open_published(found)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return publish(tmp_path / name, numbers(1, 2))

    outside = tmp_path / "outside"
    shutil.copytree(fresh("copy") / "feature", outside)
    place = fresh("file")
    (place / "feature/2.pth").unlink()
    (place / "feature/2.pth").symlink_to(outside / "2.pth")
    with pytest.raises(InputError, match=r"2\.pth: this is a link that leaves the folder, to .*outside"):
        open_published(place)
    place = fresh("features")
    shutil.rmtree(place / "feature")
    (place / "feature").symlink_to(outside)
    with pytest.raises(InputError, match="feature: this is a link"):
        open_published(place)
    place = fresh("list")
    (place / LIST).rename(outside / "list.json")
    (place / LIST).symlink_to(outside / "list.json")
    with pytest.raises(InputError, match=r"tokenized_datalist\.json: this is a link"):
        open_published(place)
    (tmp_path / "above").mkdir()
    (tmp_path / "above/train").symlink_to(fresh("elsewhere"))
    with pytest.raises(InputError, match="train: this is a link"):
        open_published(tmp_path / "above")
    place = fresh("pipe")
    (place / "feature/2.pth").unlink()
    os.mkfifo(place / "feature/2.pth")
    with pytest.raises(InputError, match=r"2\.pth: this is no plain file"):
        open_published(place)


def test_links_within_the_folder_and_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    place = publish(tmp_path / "x", numbers(1, 2))
    (place / "feature/2.pth").rename(place / "two")
    (place / "feature/2.pth").symlink_to("../two")
    assert [row.id for row in open_published(place).read()] == ["1", "2"]
    cache = tmp_path / "datasets--org--name"
    train = publish(cache / "snapshots/0123/omni/train", numbers(1, 2))
    (cache / "blobs").mkdir()
    for path in [train / LIST, train / "feature/1.pth"]:
        path.rename(cache / "blobs" / path.name)
        path.symlink_to(os.path.relpath(cache / "blobs" / path.name, path.parent))
    for found in (train, train.parent, train / LIST):
        assert [row.id for row in open_published(found).read()] == ["1", "2"]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, size
    return found


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("x/../../evil.pth"), "its name leaves the folder"),
        (member("/etc/evil.pth"), "its name leaves the folder"),
        (member("x/feature/evil.pth", tarfile.SYMTYPE, "/etc/hosts"), "it is a link, to /etc/hosts"),
        (member("x/feature/evil.pth", tarfile.LNKTYPE, "x/feature/1.pth"), "it is a link, to x/feature/1.pth"),
        (member("x/feature/evil.pth", tarfile.CHRTYPE), "it is neither a file nor a folder"),
        (member("x/feature/evil.pth", tarfile.FIFOTYPE), "it is neither a file nor a folder"),
    ],
)
def test_an_archive_with_unsafe_members_is_refused(tmp_path: Path, bad: tarfile.TarInfo, why: str, suffix: str) -> None:
    base = publish(tmp_path / "x", numbers(1))
    archive = tmp_path / f"x.{suffix}"
    with tarfile.open(archive, "w" if suffix == "tar" else "w:gz") as tar:
        tar.add(base, "x")
        tar.addfile(bad)
    with pytest.raises(InputError, match=f"{re.escape(repr(bad.name))}: {why}"):
        open_published(archive)
    assert is_published(archive)  # so that this is what a person reads


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    archive = pack(publish(tmp_path / "x", numbers(*range(20))), tmp_path / "x.tar.gz")
    whole = archive.read_bytes()
    plain = gzip.decompress(whole)
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    huge = member("pax", tarfile.XHDTYPE, size=2**32).tobuf(tarfile.GNU_FORMAT) + plain
    endless = member("a").tobuf() + member("b", size=-1024).tobuf(tarfile.GNU_FORMAT) + plain
    boundless = member("a", size=2**80).tobuf(tarfile.GNU_FORMAT) + plain
    several = (whole[: len(whole) // 2], broken, b"", b"no archive at all", gzip.compress(huge), endless, boundless)
    for content in several:
        archive.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.tar\.gz: this archive is damaged"):
            open_published(archive)
        is_published(archive)
