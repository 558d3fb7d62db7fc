"""Words of an ``earl edit`` line: which are pictures, which is the instruction, and where results go."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.commands.edit_files import Source, Targets, find_sources, split_words
from earl_cli.errors import EarlError, InputError, OutputError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a few files that look like pictures by their names."""
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
    ("words", "said"),
    [
        ([], "no picture and no instruction"),
        (["a.png"], "instruction is missing"),
        (["sub"], "instruction is missing"),
        (["missing.jpg"], "instruction is missing"),
        (["make it snowy"], "no picture"),
        (["a.png", ""], "instruction is empty"),
        (["a.png", "  "], "instruction is empty"),
        (["a.png", "b.jpg"], "instruction is missing"),
        (["make it snowy", "a.png"], "comes last"),
        (["make it snowy", "missing.png"], "comes last"),
        (["a.png", "make", "it", "snowy"], "several words"),
    ],
)
def test_each_mistake_has_its_message(folder: Path, words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        split_words(words)
    assert "earl edit" in (caught.value.hint or "")


@given(st.text())
def test_any_text_is_an_instruction_or_a_named_mistake(text: str) -> None:
    try:
        assert split_words(["photo.png", text]) == (["photo.png"], text.strip())
    except UsageError:
        assert not text.strip() or Path(text).suffix or text in {"-", "."} or text.endswith("/")


def test_a_very_long_instruction_is_no_path() -> None:
    assert split_words(["a.png", "snow " * 5000])[0] == ["a.png"]


def names(*words: str) -> list[str]:
    sources, failed = find_sources(words)
    assert not failed
    return [source.name for source in sources]


def test_files_folders_globs_and_stdin(folder: Path) -> None:
    assert names("a.png") == ["a.png"]
    assert names(".") == ["a.png", "b.jpg", "odd[1].png", "with space.jpeg"]
    assert names("*.png") == ["a.edited-2.png", "a.edited.png", "a.png", "odd[1].png"]
    assert names("**/*.webp") == ["sub/c.webp"]
    assert names("odd[1].png") == ["odd[1].png"]
    assert names("-", "b.jpg") == ["stdin", "b.jpg"]
    assert names("a.png", "a.png", "./a.png", "a.*") == ["a.png", "a.edited-2.png", "a.edited.png"]


def test_what_gives_no_picture_is_named_and_the_rest_goes_on(folder: Path) -> None:
    sources, failed = find_sources(["empty", "a.png", "*.gif"])
    assert [source.name for source in sources] == ["a.png"]
    assert [(each.name, type(each.error)) for each in failed] == [("empty", InputError), ("*.gif", InputError)]


def test_stdin_only_once() -> None:
    with pytest.raises(UsageError, match="only once"):
        find_sources(["-", "-"])


def test_default_names_lie_beside_the_original_and_take_the_next_free_number(folder: Path) -> None:
    targets = Targets(None, force=False, several=False)
    source = Source(folder / "a.png")
    assert targets.path(source, "PNG") == folder / "a.edited-3.png"
    assert targets.path(source, "PNG") == folder / "a.edited-4.png"
    assert targets.path(Source(folder / "sub/c.webp"), "WEBP") == folder / "sub/c.edited.webp"
    assert targets.beside(folder / "a.edited-3.png", "compare") == folder / "a.edited-3.compare.png"


def test_force_takes_the_first_name_but_never_twice_in_a_run(folder: Path) -> None:
    targets = Targets(None, force=True, several=False)
    assert targets.path(Source(folder / "a.png"), "PNG").name == "a.edited.png"
    assert targets.path(Source(folder / "a.png"), "PNG").name == "a.edited-2.png"


def test_a_format_that_is_not_written_becomes_png(folder: Path) -> None:
    assert Targets(None, False, False).path(Source(folder / "x.tiff"), "TIFF").name == "x.edited.png"
    assert Targets(None, False, False).path(Source(folder / "X.JPEG"), "JPEG").name == "X.edited.JPEG"


@pytest.mark.parametrize(("output", "several"), [("new/", False), ("new", True), ("sub", False)])
def test_a_folder_for_results(folder: Path, output: str, several: bool) -> None:
    targets = Targets(output, False, several)
    assert targets.is_folder
    assert targets.path(Source(Path("a.png")), "PNG") == Path(output) / "a.edited.png"
    assert targets.path(Source(Path("sub/a.png")), "PNG") == Path(output) / "a.edited-2.png"
    assert Path(output).is_dir()


def test_a_folder_that_can_not_be_made_is_named(folder: Path) -> None:
    with pytest.raises(OutputError) as caught:
        Targets("notes.txt/", False, False).path(Source(Path("a.png")), "PNG")
    assert caught.value.where == "notes.txt"


def test_a_chosen_file_must_be_free(folder: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        Targets("b.jpg", False, False)
    assert Targets("b.jpg", True, False).path(Source(Path("a.png")), "PNG") == Path("b.jpg")
    variants = Targets("new.png", False, False)
    assert [variants.path(Source(Path("a.png")), "PNG").name for _ in range(2)] == ["new.png", "new-2.png"]
    taken = Targets("a.png", True, False)
    assert taken.beside(taken.path(Source(Path("b.jpg")), "JPEG"), "compare").name == "a.compare.png"


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


def test_stdout_takes_one_picture(folder: Path) -> None:
    stdin, file = Source(None), Source(Path("a.png"))
    assert Targets(None, False, False).to_stdout([stdin], 1)
    assert Targets("-", False, False).to_stdout([file], 1)
    assert not Targets(None, False, False).to_stdout([file], 4)
    assert not Targets("new.png", False, False).to_stdout([stdin], 4)
    for sources, pictures in [([stdin, file], 1), ([file], 4)]:
        with pytest.raises(UsageError, match="one picture"):
            Targets("-", False, True).to_stdout(sources, pictures)
    with pytest.raises(UsageError, match="one name for several"):
        Targets("new.png", False, True).to_stdout([file, stdin], 2)
