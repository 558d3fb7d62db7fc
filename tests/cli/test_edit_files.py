"""Words of an ``earl edit`` line: which are images, and which is the instruction."""

from __future__ import annotations

import os
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.commands.edit.files import find_sources, split_words
from earl_cli.errors import InputError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a few files that look like images by their names."""
    monkeypatch.chdir(tmp_path)
    for name in [
        "a.png",
        "b.jpg",
        "with space.jpeg",
        "notes.txt",
        "a.edited.png",
        "a.edited-2.png",
        ".hidden.png",
        "odd[1].png",
    ]:
        Path(name).write_bytes(b"x")
    Path("sub").mkdir()
    Path("sub/c.webp").write_bytes(b"x")
    Path("empty").mkdir()
    return tmp_path


def test_the_last_word_is_the_instruction(folder: Path) -> None:
    assert split_words(["a.png", "b.jpg", " make it snowy "]) == (["a.png", "b.jpg"], "make it snowy")
    assert split_words(["-", "sepia"]) == (["-"], "sepia")
    assert split_words(["a.png", "sub"]) == (["a.png"], "sub")  # a word that happens to be a folder
    assert split_words(["sub", "night"]) == (["sub"], "night")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no image and no instruction"),
        (["a.png"], "instruction is missing"),
        (["sub"], "instruction is missing"),
        (["missing.jpg"], "instruction is missing"),
        (["make it snowy"], "no image"),
        (["a.png", ""], "instruction is empty"),
        (["a.png", "  "], "instruction is empty"),
        (["a.png", "b.jpg"], "instruction is missing"),
        (["make it snowy", "a.png"], "comes last"),
        (["make it snowy", "missing.png"], "comes last"),
        (["a.png", "make", "it", "snowy"], "several words"),
        (["make", "it", "snowy"], 'no image, only words: "make it snowy"'),
        (["snowy", "please"], "no image, only words"),
    ],
)
def test_each_mistake_has_its_message(folder: Path, words: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        split_words(words)
    assert "earl edit" in (caught.value.hint or "")


@given(st.text())
def test_any_text_is_an_instruction_or_a_named_mistake(text: str) -> None:
    try:
        assert split_words(["photo.png", text]) == (["photo.png"], text.strip())
    except UsageError:
        assert not text.strip() or Path(text).suffix or text in {"-", "."} or text.endswith("/")


def test_a_word_that_is_no_file_before_a_whole_instruction_is_a_missing_file() -> None:
    assert split_words(["photo", "make it snowy"])[0] == ["photo"]
    assert split_words(["sub/photo", "sepia"])[0] == ["sub/photo"]


def test_a_very_long_instruction_is_refused() -> None:
    assert split_words(["a.png", "snow " * 800])[0] == ["a.png"]
    with pytest.raises(UsageError, match="12,000 characters, more than 4,000") as caught:
        split_words(["a.png", "snow, " * 2000])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "word", ["https://example.org/a.jpg", "HTTP://x/y", "ftp://x/a.png", "data:image/png;base64,i"]
)
def test_a_url_is_named_as_one(folder: Path, word: str) -> None:
    with pytest.raises(UsageError, match="a URL, not a file"):
        split_words(["a.png", word, "night"])
    Path("data:image").touch()
    assert split_words(["data:image", "night"])[0] == ["data:image"]


def names(*words: str) -> list[str]:
    found = find_sources(words)
    assert not found.failed
    return [source.name for source in found.sources]


def left_out(*words: str) -> list[str]:
    return [str(path) for path in find_sources(words).earlier]


def test_a_file_address_is_that_file(folder: Path) -> None:
    address = (folder / "with space.jpeg").as_uri()
    assert split_words([address, "night"])[0] == [address]
    assert names(address, "with space.jpeg") == [str(folder / "with space.jpeg")]


def test_files_folders_globs_and_stdin(folder: Path) -> None:
    assert names("a.png") == ["a.png"]
    assert names(".") == ["a.png", "b.jpg", "odd[1].png", "with space.jpeg"]
    assert names("*.png") == ["a.png", "odd[1].png"]
    assert names("**/*.webp") == ["sub/c.webp"]
    assert names("odd[1].png") == ["odd[1].png"]
    assert names("-", "b.jpg") == ["stdin", "b.jpg"]
    assert names("a.png", "a.png", "./a.png", "a.*") == ["a.png"]


def test_results_of_earlier_runs_are_left_out(folder: Path) -> None:
    for name in ["b.edited.compare.jpg", "b.edited-3.grid-2.jpg", "my.edited.photo.png", "c.edited-last.png"]:
        Path(name).touch()
    theirs = ["a.edited-2.png", "a.edited.png", "b.edited-3.grid-2.jpg", "b.edited.compare.jpg"]
    assert left_out(".") == left_out("*") == theirs
    assert names("?.*") == ["a.png", "b.jpg", "c.edited-last.png"]
    assert "my.edited.photo.png" in names(".")
    written_by_a_shell = sorted(path.name for path in Path().glob("a*.png"))
    assert names(*written_by_a_shell) == ["a.png"]
    assert left_out(*written_by_a_shell) == theirs[:2]


def test_a_result_that_is_named_is_edited_again(folder: Path) -> None:
    assert names("a.edited.png", "b.jpg") == ["a.edited.png", "b.jpg"]
    assert names("*.edited*.png") == ["a.edited-2.png", "a.edited.png"]
    assert find_sources(["*.edited.gif"]).failed[0].error.what == "no image matches"
    Path("x.edited.d").mkdir()
    Path("x.edited.d/a.edited.png").touch()
    assert find_sources(["x.edited.d"]).sources == []
    Path("a.png").unlink()
    (failed,) = find_sources(["a*.png"]).failed
    assert "but results of earlier runs" in failed.error.what


def test_photos_that_need_another_program_are_not_left_out(folder: Path) -> None:
    Path("sub/IMG_1.HEIC").touch()
    assert names("sub") == ["sub/IMG_1.HEIC", "sub/c.webp"]


def test_names_are_found_in_either_unicode_form(folder: Path) -> None:
    composed, apart = (normalize(form, "sommer é/föto ä.png") for form in ("NFC", "NFD"))
    for typed, there in [(composed, apart), (apart, composed)]:
        Path(there).parent.mkdir(exist_ok=True)
        Path(there).touch()
        if not Path(typed).exists():  # else the disk doesn't tell them apart
            assert names(typed) == [there]
            assert names(typed.replace(".png", ".*")) == [there]
            assert names(str(Path(typed).parent)) == [there]
        Path(there).unlink()
        Path(there).parent.rmdir()


def test_a_pipe_lies_in_no_folder(folder: Path) -> None:
    os.mkfifo("pipe")
    (pipe, file) = find_sources(["pipe", "a.png"]).sources
    assert (pipe.is_stream, file.is_stream) == (True, False)


def test_images_of_unreadable_kinds_are_not_skipped_and_other_media_are_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = bytes((0, 0, 0, 24)) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(80)
    Path("sub/IMG_1.HEIC").write_bytes(media)
    Path("sub/without a suffix").write_bytes(b"8BPS" + bytes(80))
    for number in range(5):
        Path(f"sub/clip{number}.mov").write_bytes(media.replace(b"heic", b"qt  ").replace(b"mif1", b"qt  "))
    Path("sub/notes.txt").write_text("nothing")
    assert names("sub") == ["sub/IMG_1.HEIC", "sub/c.webp", "sub/without a suffix"]
    result = capsys.readouterr().err
    assert result.count("left out") == 1
    assert "clip0.mov (a video (MP4 or QuickTime))" in result
    assert "and 2 more" in result
    assert names("sub/*.HEIC") == ["sub/IMG_1.HEIC"]


def test_what_gives_no_image_is_named_and_the_rest_goes_on(folder: Path) -> None:
    found = find_sources(["empty", "a.png", "*.gif"])
    assert [source.name for source in found.sources] == ["a.png"]
    assert [(each.name, type(each.error)) for each in found.failed] == [("empty", InputError), ("*.gif", InputError)]


def test_stdin_only_once() -> None:
    with pytest.raises(UsageError, match="only once"):
        find_sources(["-", "-"])
