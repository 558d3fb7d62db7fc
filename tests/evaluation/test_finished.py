"""Images that were made elsewhere, found by the names of samples; and the source as its own edit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earl_cli.errors import InputError
from earl_cli.evaluation import editors
from earl_cli.evaluation.editors import EditorOutput, EditTask, copy_editor, open_finished

SOURCE = Image.new("RGB", (16, 8), "white")


def colour(name: str, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, name)


def task(id: str, seed: int = 0) -> EditTask:
    return EditTask(id, SOURCE, "make it red", seed)


def generated(folder: Path, *tasks: EditTask) -> list[EditorOutput]:
    return open_finished(folder).edit(tasks)


def colours(found: list[EditorOutput]) -> list[tuple[int, ...]]:
    assert all(each.image is not None and not each.problem for each in found), found
    return [tuple(np.asarray(each.image)[0, 0]) for each in found if each.image is not None]


def test_an_image_is_found_by_the_id_of_its_sample(tmp_path: Path) -> None:
    colour("red").save(tmp_path / "17.png")
    colour("blue", (30, 20)).save(tmp_path / "18.webp", lossless=True)
    colour("lime").save(tmp_path / "task_obj.add-3.BMP")
    found = generated(tmp_path, task("17"), task("18"), task("task_obj.add-3"))
    assert colours(found) == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert [each.image.size for each in found if each.image] == [(8, 8), (30, 20), (8, 8)]


def test_an_image_for_this_seed_comes_before_one_for_all(tmp_path: Path) -> None:
    colour("red").save(tmp_path / "17.png")
    colour("blue").save(tmp_path / "17.5.png")
    assert colours(generated(tmp_path, task("17", 5), task("17", 6))) == [(0, 0, 255), (255, 0, 0)]


def test_png_comes_before_what_loses(tmp_path: Path) -> None:
    colour("red").save(tmp_path / "17.png")
    colour("blue").save(tmp_path / "17.jpg")
    assert colours(generated(tmp_path, task("17"))) == [(255, 0, 0)]


@pytest.mark.parametrize(
    ("id", "file"),
    [
        ("a/b c", "a_b_c.png"),
        ("a/b c", "a_b c.png"),
        ("a/b:c", "a_b_c.7.png"),
        ("café", "cafe\u0301.png"),
        ("../outside", ".._outside.png"),
    ],
)
def test_odd_names(id: str, file: str, tmp_path: Path) -> None:
    colour("red").save(tmp_path / file)
    assert colours(generated(tmp_path, task(id, 7))) == [(255, 0, 0)]


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    colour("red").save(tmp_path / "secret.png")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "within.png").symlink_to(folder / "real.png")
    colour("blue").save(folder / "real.png")
    requested = [task(id) for id in ("../secret", str(tmp_path / "secret"), "link")]
    assert [each.image for each in generated(folder, *requested)] == [None] * 3
    assert colours(generated(folder, task("within"))) == [(0, 0, 255)]


def test_one_that_is_missing_or_damaged_has_a_problem(tmp_path: Path) -> None:
    colour("red").save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:45])
    (tmp_path / "3.png").write_text("not a picture")
    (tmp_path / "4.png").mkdir()
    good, *bad = generated(tmp_path, *(task(str(n)) for n in range(1, 5)))
    assert colours([good]) == [(255, 0, 0)]
    assert [each.image for each in bad] == [None] * 3
    assert "2.png: the image is" in bad[0].problem
    assert "3.png: this isn't an image" in bad[1].problem
    assert bad[2].problem == f"there is no 4.png, nor under another extension, in {tmp_path.name}"


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read: No such file") as caught:
        open_finished(tmp_path / "nowhere")
    assert caught.value.where == str(tmp_path / "nowhere")


@pytest.mark.parametrize("limit", [editors.HASHED_BYTES, 0], ids=["contents", "times"])
def test_the_fingerprint_is_that_of_the_images(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editors, "HASHED_BYTES", limit)
    monkeypatch.chdir(tmp_path)
    colour("red").save("1.bmp")

    def fingerprint() -> str:
        described = open_finished(Path()).describe()
        assert (described["kind"], described["name"]) == ("finished", tmp_path.name)
        return str(described["fingerprint"])

    first = fingerprint()
    Path("notes.txt").write_text("mine")
    assert fingerprint() == first
    colour("blue").save("1.bmp")
    os.utime("1.bmp", ns=(1, 1))
    second = fingerprint()
    Path("1.bmp").rename("2.bmp")
    assert len({first, second, fingerprint()}) == 3


def test_progress_counts_tasks(tmp_path: Path) -> None:
    shares: list[float] = []
    open_finished(tmp_path).edit([task("1"), task("2")], shares.append)
    assert shares == [0.5, 1.0]


def test_the_copy_is_the_source() -> None:
    editor = copy_editor()
    (found,) = editor.edit([task("1")])
    assert found.image is not None
    assert found.image.tobytes() == SOURCE.tobytes()
    assert (editor.name, editor.describe()) == ("copy", {"name": "copy", "kind": "copy"})
