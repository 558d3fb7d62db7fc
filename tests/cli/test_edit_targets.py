"""Where results of ``earl edit`` go: names are taken when they are chosen, and nothing is overwritten unasked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from earl_cli.commands.edit.files import InputFile
from earl_cli.commands.edit.targets import Targets
from earl_cli.errors import EarlError, OutputError, UsageError

PHOTO = InputFile(Path("a.png"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a few files that look like images by their names."""
    monkeypatch.chdir(tmp_path)
    for name in ["a.png", "b.jpg", "notes.txt", "a.edited.png", "a.edited-2.png"]:
        Path(name).write_bytes(b"x")
    Path("sub").mkdir()
    Path("sub/a.png").write_bytes(b"x")
    Path("sub/c.webp").write_bytes(b"x")
    return tmp_path


def test_default_names_lie_beside_the_original_and_take_the_next_free_number(folder: Path) -> None:
    targets = Targets(None, force=False, several=False)
    source = InputFile(folder / "a.png")
    assert targets.path(source, "PNG") == folder / "a.edited-3.png"
    assert targets.path(source, "PNG") == folder / "a.edited-4.png"
    assert targets.path(InputFile(folder / "sub/c.webp"), "WEBP") == folder / "sub/c.edited.webp"
    assert targets.beside(folder / "a.edited-3.png", "compare", source) == folder / "a.edited-3.compare.png"


def test_force_takes_the_first_name_but_never_twice_in_a_run(folder: Path) -> None:
    targets = Targets(None, force=True, several=False)
    assert targets.path(InputFile(folder / "a.png"), "PNG").name == "a.edited.png"
    assert targets.path(InputFile(folder / "a.png"), "PNG").name == "a.edited-2.png"


def test_a_format_that_is_not_written_becomes_png(folder: Path) -> None:
    assert Targets(None, False, False).path(InputFile(folder / "x.tiff"), "TIFF").name == "x.edited.png"
    assert Targets(None, False, False).path(InputFile(folder / "X.JPEG"), "JPEG").name == "X.edited.JPEG"


@pytest.mark.parametrize(("output", "several"), [("new/", False), ("new", True), ("sub", False)])
def test_a_folder_for_results(folder: Path, output: str, several: bool) -> None:
    targets = Targets(output, False, several)
    assert targets.is_folder
    assert targets.path(PHOTO, "PNG") == Path(output) / "a.edited.png"
    assert targets.path(InputFile(Path("sub/a.png")), "PNG") == Path(output) / "a.edited-2.png"
    assert Path(output).is_dir()


def test_a_folder_that_can_not_be_made_is_named(folder: Path) -> None:
    with pytest.raises(OutputError) as caught:
        Targets("notes.txt/", False, False)
    assert (caught.value.where, caught.value.what) == ("notes.txt", "this is a file, not a folder")
    with pytest.raises(OutputError, match="not a folder"):
        Targets("notes.txt/sub/", False, False)


def test_a_chosen_file_must_be_free(folder: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        Targets("b.jpg", False, False)
    assert Targets("b.jpg", True, False).path(PHOTO, "PNG") == Path("b.jpg")
    variants = Targets("new.png", False, False)
    assert [variants.path(PHOTO, "PNG").name for _ in range(2)] == ["new.png", "new-2.png"]
    taken = Targets("a.png", True, False)
    photo = InputFile(Path("b.jpg"))
    assert taken.beside(taken.path(photo, "JPEG"), "compare", photo).name == "a.compare.png"


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("", UsageError),
        ("out.bmp", UsageError),
        ("out", UsageError),
        ("nowhere/out.png", OutputError),
        ("a.txt", UsageError),
    ],
)
def test_names_that_can_not_be_written_are_refused_before_any_work(
    folder: Path, output: str, error: type[EarlError]
) -> None:
    with pytest.raises(error):
        Targets(output, False, False)


def test_stdout_takes_one_image(folder: Path) -> None:
    stdin, file = InputFile(None), PHOTO
    assert Targets(None, False, False).to_stdout([stdin], 1)
    assert Targets("-", False, False).to_stdout([file], 1)
    assert not Targets(None, False, False).to_stdout([file], 4)
    assert not Targets("new.png", False, False).to_stdout([stdin], 4)
    for sources, images in [([stdin, file], 1), ([file], 4)]:
        with pytest.raises(UsageError, match="one image"):
            Targets("-", False, True).to_stdout(sources, images)
    with pytest.raises(UsageError, match="one name for several"):
        Targets("new.png", False, True).to_stdout([file, stdin], 2)


# -- names are taken when they are chosen -----------------------------------------------------------------------------


def test_runs_at_the_same_time_never_choose_the_same_name(folder: Path) -> None:
    def one_run(_: int) -> list[Path]:
        targets = Targets("sub", False, False)
        path = targets.path(PHOTO, "PNG")
        return [path, targets.beside(path, "grid", PHOTO)]

    with ThreadPoolExecutor(8) as pool:
        paths = [path for paths in pool.map(one_run, range(40)) for path in paths]
    assert len(set(paths)) == 80
    assert all(path.exists() for path in paths)


def test_a_chosen_name_goes_to_the_first_result(folder: Path) -> None:
    first, second = Targets("new.png", False, False), Targets("new.png", False, False)
    assert first.path(PHOTO, "PNG") == Path("new.png")
    with pytest.raises(OutputError, match="exists already"):
        second.path(PHOTO, "PNG")


def test_what_is_not_written_in_the_end_holds_no_name(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(KeyboardInterrupt), Targets(None, False, False) as targets:
        written = targets.path(PHOTO, "PNG")
        for _ in range(3):
            targets.beside(targets.path(PHOTO, "PNG"), "compare", PHOTO)
        aside = Path("aside")
        aside.write_bytes(b"a picture")
        aside.replace(written)
        raise KeyboardInterrupt
    assert sorted(folder.rglob("*")) == sorted([*before, folder / written])
    with pytest.raises(KeyboardInterrupt), Targets("b.jpg", True, False) as targets:
        targets.path(PHOTO, "PNG")
        raise KeyboardInterrupt
    assert Path("b.jpg").read_bytes() == b"x"


@pytest.mark.parametrize("output", [None, "new.png"])
def test_what_others_write_meanwhile_is_not_overwritten(folder: Path, output: str | None) -> None:
    with Targets(output, False, False) as targets:
        path = targets.path(PHOTO, "PNG")
        assert targets.still(path, PHOTO) == path
        path.write_bytes(b"theirs")
        other = targets.still(path, PHOTO)
        assert other != path
        assert other.name.startswith(path.stem[:4])
        other.unlink()
    assert path.read_bytes() == b"theirs"


def test_a_link_to_nothing_and_a_folder_are_no_free_names(folder: Path) -> None:
    Path("c.edited.webp").symlink_to("nowhere")
    Path("c.edited-2.webp").mkdir()
    assert Targets(None, True, False).path(InputFile(Path("sub/../c.webp")), "WEBP").name == "c.edited.webp"
    assert Targets(None, False, False).path(InputFile(Path("c.webp")), "WEBP").name == "c.edited-3.webp"
    Path("link.png").symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists already"):
        Targets("link.png", False, False)


def test_a_private_photo_has_a_private_edit(folder: Path) -> None:
    Path("a.png").chmod(0o600)
    assert Targets("new.png", False, False).path(PHOTO, "PNG").stat().st_mode & 0o777 == 0o600
    Path("a.png").chmod(0o444)
    assert Targets("other.png", False, False).path(PHOTO, "PNG").stat().st_mode & 0o200


# -- what can't be written is found before anything is drawn ----------------------------------------------------------


def test_a_name_that_is_too_long(folder: Path) -> None:
    photo = InputFile(Path("n" * 250 + ".png"))
    with pytest.raises(OutputError, match="name too long") as caught:
        Targets(None, False, False).path(photo, "PNG")
    assert "-o" in (caught.value.hint or "")
    with pytest.raises(OutputError, match="name too long"):
        Targets("n" * 260 + ".png", False, False).path(PHOTO, "PNG")
    with pytest.raises(OutputError, match="name too long"):
        Targets("n" * 260 + "/", False, False).path(PHOTO, "PNG")


def test_a_pipe_needs_a_name_for_its_edit(folder: Path) -> None:
    os.mkfifo("pipe")
    with pytest.raises(OutputError, match="has no folder"):
        Targets(None, False, False).path(InputFile(Path("pipe")), "PNG")
    assert Targets("sub", False, False).path(InputFile(Path("pipe")), "JPEG") == Path("sub/pipe.edited.jpg")
    os.mkfifo("out.png")
    assert Targets("out.png", False, False).path(PHOTO, "PNG") == Path("out.png")


@pytest.fixture
def without_rights(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory in which nothing can be written, for a user whom permissions hold for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.chdir(folder)
        for file in ("a.png", "mine/old.png", "mine/kept.png"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(b"x")
        (folder / "a.png").chmod(0o666)
        (folder / "mine/kept.png").chmod(0o444)
        (folder / "mine/old.png").chmod(0o666)
        (folder / "mine").chmod(0o777)
        (folder / "locked").mkdir(mode=0o555)
        user = os.getuid()
        if user == 0:
            os.setresuid(65534, 65534, 0)
        else:
            folder.chmod(0o555)
        try:
            yield folder
        finally:
            os.setresuid(user, user, user)
            folder.chmod(0o755)


def test_a_folder_without_rights_is_named(without_rights: Path) -> None:
    for output in ["new.png", "locked/new.png"]:
        with pytest.raises(OutputError, match="Permission denied"):
            Targets(output, False, False).path(PHOTO, "PNG")
    for output in ["new/", "locked/", "locked/new/"]:
        with pytest.raises(OutputError, match="no permission"):
            Targets(output, False, False)
    with pytest.raises(OutputError, match="Permission denied") as caught:
        Targets(None, False, False).path(PHOTO, "PNG")
    assert (caught.value.where, caught.value.hint) == ("a.edited.png", "-o FILE or -o FOLDER/ puts the edit elsewhere")
    with pytest.raises(OutputError, match="no permission to write into its folder"):
        Targets("a.png", True, False)
    with pytest.raises(OutputError, match="write-protected"):
        Targets("mine/kept.png", True, False)
    assert Targets("mine/old.png", True, False).path(PHOTO, "PNG") == Path("mine/old.png")
    assert Path("mine/old.png").read_bytes() == b"x"
