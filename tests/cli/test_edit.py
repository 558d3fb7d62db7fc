"""``earl edit`` as a person types it, on a tiny model: names, formats, variants, pipes, and every way to fail."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from earl_cli import app

AREA = 32 * 32


def photo(path: Path | io.BytesIO, size: tuple[int, int] = (60, 40), **options: object) -> Path | io.BytesIO:
    """A smooth colourful image; the format comes from the name."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([columns * 255 // size[0], rows * 255 // size[1], (rows + columns) % 256], axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)
    return path


@pytest.fixture
def earl(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs ``earl edit … --model tiny --device cpu`` in a new folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, code: int | None = 0) -> tuple[str, str]:
        got = app.run(["edit", "--model", str(tiny_model_dir), "--device", "cpu", *args])
        captured = capfd.readouterr()
        assert code is None or got == code, captured.err
        return captured.out, captured.err

    return run


def opened(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def test_the_edit_lies_beside_the_photo_at_its_size(earl, tmp_path: Path) -> None:
    photo(tmp_path / "photo.jpg")
    before = (tmp_path / "photo.jpg").read_bytes()
    out, err = earl("photo.jpg", "make it snowy", "--seed", "3")
    assert opened("photo.edited.jpg").size == (60, 40)
    assert opened("photo.edited.jpg").format == "JPEG"
    assert "photo.jpg -> photo.edited.jpg" in out
    assert "seed 3" in out
    assert "cpu" in err  # the line about device and memory
    assert (tmp_path / "photo.jpg").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.edited.jpg", "photo.jpg"]


def test_the_same_seed_gives_the_same_edit_and_another_another(earl) -> None:
    photo(Path("a.png"))
    for number, seed in enumerate(["5", "5", "6"]):
        earl("a.png", "make it snowy", "--seed", seed, "-o", f"{number}.png")
    images = [opened(f"{number}.png").tobytes() for number in range(3)]
    assert images[0] == images[1] != images[2]


def test_a_random_seed_is_shown_and_repeats_the_edit(earl) -> None:
    photo(Path("a.png"))
    earl("a.png", "make it snowy", "-o", "first.png")
    seed = opened("first.png").text["seed"]
    earl("a.png", "make it snowy", "-o", "second.png", "--seed", seed)
    assert opened("first.png").tobytes() == opened("second.png").tobytes()


def test_variants_count_seeds_up_and_do_not_depend_on_each_other(earl) -> None:
    photo(Path("a.png"))
    earl("a.png", "night", "-n", "3", "--seed", "10", "--grid", "--compare")
    names = ["a.edited.png", "a.edited-2.png", "a.edited-3.png"]
    assert [opened(name).text["seed"] for name in names] == ["10", "11", "12"]
    earl("a.png", "night", "--seed", "12", "-o", "alone.png")
    assert opened("alone.png").tobytes() == opened("a.edited-3.png").tobytes()
    assert opened("a.edited.grid.png").size == (2 * 60 + 8, 2 * 40 + 8)
    assert opened("a.edited.compare.png").size == (4 * 60 + 3 * 8, 40)
    comparison = opened("a.edited.compare.png")
    assert comparison.crop((0, 0, 60, 40)).tobytes() == opened("a.png").tobytes()
    assert comparison.crop((68, 0, 128, 40)).tobytes() == opened("a.edited.png").tobytes()


def test_an_edit_does_not_depend_on_what_else_is_edited(earl) -> None:
    for index, size in enumerate([(60, 40), (33, 50), (64, 64)]):
        photo(Path(f"{index}.png"), size)
    earl("*.png", "make it snowy", "--seed", "1", "-o", "together/")
    earl("1.png", "make it snowy", "--seed", "1", "-o", "alone.png")
    assert opened("together/1.edited.png").tobytes() == opened("alone.png").tobytes()


def test_png_metadata_tells_how_to_make_it_again(earl, tiny_model_dir: Path) -> None:
    photo(Path("a.png"))
    earl("a.png", "make it ❄ snowy", "--seed", "3")
    text = opened("a.edited.png").text
    assert text["instruction"] == "make it ❄ snowy"
    assert text["seed"] == "3"
    assert tiny_model_dir.name in text["model"]
    assert text["version"].startswith("earl ")
    assert "top-k 64" in text["sampling"]  # the model's own


def test_size_model_is_what_the_model_drew(earl) -> None:
    photo(Path("a.png"), (90, 60))
    earl("a.png", "night", "--size", "model")
    width, height = opened("a.edited.png").size
    assert width % 8 == height % 8 == 0
    assert 0.7 * AREA < width * height < 1.4 * AREA
    earl("a.png", "night", "--size", "model", "--image-area", "256", "--force")
    assert opened("a.edited.png").width * opened("a.edited.png").height < 0.5 * AREA


def test_temperature_zero_ignores_the_seed(earl) -> None:
    photo(Path("a.png"))
    earl("a.png", "night", "--temperature", "0", "--seed", "1", "-o", "1.png")
    earl("a.png", "night", "--temperature", "0", "--seed", "2", "-o", "2.png")
    assert opened("1.png").tobytes() == opened("2.png").tobytes()


def test_nothing_is_overwritten_without_force(earl) -> None:
    photo(Path("a.png"))
    Path("a.edited.png").write_bytes(b"precious")
    earl("a.png", "night")
    assert Path("a.edited.png").read_bytes() == b"precious"
    assert opened("a.edited-2.png").size == (60, 40)
    _, err = earl("a.png", "night", "-o", "a.edited.png", code=8)
    assert "exists already" in err
    assert "--force" in err
    assert Path("a.edited.png").read_bytes() == b"precious"
    earl("a.png", "night", "-o", "a.edited.png", "--force")
    assert opened("a.edited.png").size == (60, 40)


def test_a_bad_file_does_not_stop_the_others(earl) -> None:
    Path("in").mkdir()
    for name in ["a.png", "b c.jpg", "d.webp"]:
        photo(Path("in") / name)
    Path("in/empty.png").touch()
    Path("in/text.jpg").write_text("no picture")
    whole = Path("in/a.png").read_bytes()
    Path("in/half.png").write_bytes(whole[: len(whole) // 2])
    _, err = earl("in", "missing.png", "make it snowy", "-o", "out", code=7)
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.edited.png", "b c.edited.jpg", "d.edited.webp"]
    for name in ["empty.png", "text.jpg", "half.png", "missing.png"]:
        assert name in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "3 written" in err


def test_json_is_one_document_with_everything(earl, tiny_model_dir: Path) -> None:
    photo(Path("a.png"))
    Path("bad.png").touch()
    out, err = earl("a.png", "bad.png", "make it snowy", "--seed", "4", "--json", code=7)
    document = json.loads(out)
    (result,) = document["results"]
    assert result["source"] == "a.png"
    assert result["output"] == "a.edited.png"
    assert (result["width"], result["height"], result["seeds"]) == (60, 40, [4])
    (failed,) = document["failed"]
    assert (failed["source"], failed["exit_code"]) == ("bad.png", 3)
    assert document["error"]["exit_code"] == 7
    assert document["instruction"] == "make it snowy"
    assert document["sampling"] == {"temperature": 1.0, "top_k": 64, "top_p": 1.0}
    abilities = document["abilities"]
    assert (abilities["in_range"], abilities["kind"], abilities["understood_as"]) == (True, "snow", "make it snowy")
    assert "a.edited.png" in err


def test_one_failing_file_ends_with_its_own_code(earl) -> None:
    Path("empty.png").touch()
    out, err = earl("empty.png", "night", "--json", code=3)
    assert json.loads(out)["error"]["where"] == "empty.png"
    assert err.startswith("error: empty.png: ")


def test_an_instruction_outside_the_models_range_is_reported(earl) -> None:
    photo(Path("a.png"))
    out, err = earl("a.png", "add a dragon", "--json")
    abilities = json.loads(out)["abilities"]
    assert (abilities["in_range"], abilities["kind"], abilities["understood_as"]) == (False, None, None)
    assert abilities["examples"] == ["make it snowy", "turn it into night"]
    assert "dragon" in err
    assert "make it snowy" in err
    _, err = earl("a.png", "make it snowy")
    assert "warning" not in err


def test_a_normalised_instruction_is_reported_and_gives_the_same_edit(earl) -> None:
    photo(Path("a.png"))
    earl("a.png", "make it snowy", "--seed", "3", "-o", "plain.png")
    out, err = earl("a.png", " MAKE\tit  Snowy, please! ", "--seed", "3", "-o", "loud.png", "--json")
    assert opened("plain.png").tobytes() == opened("loud.png").tobytes()
    assert "understood as: make it snowy\n" in err
    assert json.loads(out)["abilities"]["understood_as"] == "make it snowy"
    assert json.loads(out)["instruction"] == "MAKE\tit  Snowy, please!"
    assert opened("loud.png").text["understood as"] == "make it snowy"
    assert "understood as" not in opened("plain.png").text


def test_quiet_says_nothing(earl) -> None:
    photo(Path("a.png"))
    assert earl("a.png", "dragon", "--quiet") == ("", "")
    assert Path("a.edited.png").is_file()


def test_think_shows_the_reasoning_or_what_is_wrong_with_it(earl) -> None:
    photo(Path("a.png"))
    out, err = earl("a.png", "night", "--think", "--seed", "1", code=None)  # a random model may draw nothing at all
    assert "reasoning:" in out if Path("a.edited.png").exists() else "generated no image" in err


def test_names_and_words_can_not_write_to_the_terminal(earl) -> None:
    name = "\u202egnp.\x1b[31m\nerror: lies.png"
    photo(Path(name))
    out, err = earl(name, "make it \u202eywons\x1b[2J\nerror: no", "--seed", "1")
    assert out.startswith(r"\u202egnp.\x1b[31m\nerror: lies.png -> \u202egnp.\x1b[31m\nerror: lies.edited.png")
    assert len(out.splitlines()) == 1
    assert r'"make it \u202eywons\x1b[2J error: no"' in err
    assert "\x1b" not in err
    assert Path(name).with_name("\u202egnp.\x1b[31m\nerror: lies.edited.png").exists()


def test_the_same_line_again_edits_no_edit(earl) -> None:
    photo(Path("a.png"))
    earl("*.png", "make it snowy", "--compare")
    _, err = earl("*.png", "make it snowy")
    assert "left out, as results of earlier runs: a.edited.compare.png, a.edited.png" in err
    names = ["a.edited-2.png", "a.edited.compare.png", "a.edited.png", "a.png"]
    assert sorted(path.name for path in Path().iterdir()) == names


def test_a_descriptor_is_read_and_its_edit_needs_a_name(earl) -> None:
    photo(Path("a.png"))
    for options, code in [([], 8), (["-o", "out.png"], 0)]:
        reader, writer = os.pipe()
        os.write(writer, Path("a.png").read_bytes())
        os.close(writer)
        _, err = earl(f"/dev/fd/{reader}", "make it snowy", *options, code=code)
        os.close(reader)
        assert ("-o FILE" in err) == bool(code)
    assert opened("out.png").size == (60, 40)


def test_what_can_not_be_written_is_reported_before_the_model_is_loaded(earl) -> None:
    photo(Path("a.png"))
    photo(Path("n" * 250 + ".png"))
    photo(Path("m" * 240 + ".png"))
    for line in [["a.png", "-o", "a.png/"], ["a.png", "-o", "n" * 260 + ".png"], ["n" * 250 + ".png"]]:
        _, err = earl(*line[:1], "make it snowy", *line[1:], code=8)
        assert err.count("error: ") == 1
        assert "tiny: " not in err  # what is said of the model
    earl("m" * 240 + ".png", "make it snowy")
    assert opened("m" * 240 + ".edited.png").size == (60, 40)


@contextmanager
def stream_of(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> Iterator[None]:
    """A standard stream that writes to a descriptor; what is left in it in the end is dropped."""
    with os.fdopen(number, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(f"sys.{name}", stream)
        yield
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed() -> int:
    """As the program's main leaves a stream that was closed before."""
    return os.open(os.devnull, os.O_RDONLY)


def test_a_stdout_that_takes_nothing_costs_no_edit(earl, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        photo(Path(f"{name}.png"))
    for options in ([], ["--json"]):
        with stream_of(monkeypatch, "stdout", full()):
            _, err = earl("a.png", "b.png", "make it snowy", *options, code=8)
        assert err.endswith("error: stdout: it can't be written: No space left on device\n")
        assert err.count("error: ") == 1
    names = ["a.edited-2.png", "a.edited.png", "a.png", "b.edited-2.png", "b.edited.png", "b.png"]
    assert sorted(path.name for path in Path().iterdir()) == names
    with stream_of(monkeypatch, "stdout", full()):
        _, err = earl("a.png", "make it snowy", "-o", "-", code=8)
    assert err.endswith("error: stdout: the image can't be written: No space left on device\n")


def test_a_model_that_never_learned_to_reason_says_nothing_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "a.png")
    assert app.run(["edit", str(tmp_path / "a.png"), "make it sepia", "--think", "--seed", "1"]) == 0
    captured = capsys.readouterr()
    assert "the model gave no reasoning; --think is for models that were trained to" in captured.err
    assert "reasoning" not in captured.out


class Slow(io.FileIO):
    """Takes 1,000 bytes of a write, as a disk does that is nearly full, and no more than ``most`` in all."""

    most = 0

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        room = self.most - self.tell()
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[: min(1000, room)])


@pytest.mark.parametrize("options", [["-o", "-"], ["--json"]])
def test_a_stdout_without_a_buffer_gets_everything_or_there_is_an_error(earl, monkeypatch, options: list[str]) -> None:
    photo(Path("a.png"), size=(120, 80))
    for most, code in [(1 << 20, 0), (1200, 8)]:
        raw = Slow("out", "w")
        raw.most = most
        unbuffered = io.TextIOWrapper(raw, "utf-8", write_through=True)  # as PYTHONUNBUFFERED=1 makes it
        monkeypatch.setattr("sys.stdout", unbuffered)
        _, err = earl("a.png", "make it snowy" + " and snowy" * 100, *options, code=code)
        if code:
            assert err.count("No space left on device") == 1
        elif options == ["--json"]:
            json.loads(Path("out").read_bytes())
        else:
            assert opened("out").size == (120, 80)


def test_a_closed_stdout_wants_no_lines_and_takes_no_data(earl, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(Path("a.png"))
    with stream_of(monkeypatch, "stdout", closed()):
        _, err = earl("a.png", "make it snowy")
    assert "error" not in err
    assert Path("a.edited.png").exists()
    for options in (["--json"], ["-o", "-"]):
        with stream_of(monkeypatch, "stdout", closed()):
            _, err = earl("a.png", "make it snowy", *options, code=8)
        assert err.startswith("error: stdout: it is closed\n")
        assert "tiny: " not in err
    assert not Path("a.edited-2.png").exists()


def test_a_stderr_that_takes_nothing_costs_nothing(earl, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(Path("a.png"))
    with stream_of(monkeypatch, "stderr", full()):
        out, _ = earl("a.png", "missing.png", "add a dragon", "--json", code=7)
    assert json.loads(out)["results"][0]["output"] == "a.edited.png"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch):
    def give(data: bytes) -> None:
        stream = io.TextIOWrapper(io.BytesIO(data))
        monkeypatch.setattr("sys.stdin", stream)

    return give


def piped(run, monkeypatch: pytest.MonkeyPatch) -> bytes:
    collected = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(collected, write_through=True))
    run()
    return collected.getvalue()


@pytest.mark.parametrize(("kind", "written"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "WEBP"), ("BMP", "PNG")])
def test_an_image_through_a_pipe(earl, stdin, monkeypatch: pytest.MonkeyPatch, kind: str, written: str) -> None:
    data = io.BytesIO()
    photo(data, format=kind)
    stdin(data.getvalue())
    result = piped(lambda: earl("-", "night", "--seed", "1"), monkeypatch)
    image = Image.open(io.BytesIO(result))
    assert (image.format, image.size) == (written, (60, 40))
    assert not list(Path().iterdir())


def test_stdin_to_a_file_and_a_file_to_stdout(earl, stdin, monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    photo(data, format="PNG")
    stdin(data.getvalue())
    earl("-", "night", "-o", "out.webp", "--seed", "1")
    assert opened("out.webp").format == "WEBP"
    photo(Path("a.png"))
    result = piped(lambda: earl("a.png", "night", "-o", "-", "--compare", "--seed", "1"), monkeypatch)
    assert Image.open(io.BytesIO(result)).size == (128, 40)
    assert not Path("a.edited.png").exists()


def test_json_and_an_image_do_not_share_stdout(earl) -> None:
    photo(Path("a.png"))
    out, _ = earl("a.png", "night", "-o", "-", "--json", code=2)
    assert "stdout" in json.loads(out)["error"]["what"]


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["make it snowy", "a.png"], 2, "comes last"),
        (["make", "it", "snowy"], 2, "no image, only words"),
        (["https://example.org/a.png", "night"], 2, "a URL, not a file"),
        (["a.png", "snow " * 2400], 2, "12,000 characters"),
        (["a.png"], 2, "instruction is missing"),
        (["a.png", " "], 2, "instruction is empty"),
        (["missing.png", "night"], 3, "no such file"),
        (["a.png", "night", "-o", "out.gif"], 2, ".png"),
        (["a.png", "night", "-o", "nowhere/out.png"], 8, "no such folder"),
        (["a.png", "night", "--max-pixels", "100"], 3, "more than the limit"),
        (["a.png", "night", "--image-area", "1"], 2, "--image-area"),
        (["a.png", "night", "--size", "huge"], 2, "--size"),
        (["a.png", "night", "-n", "0"], 2, "-n"),
        (["a.png", "night", "--top-p", "1.5"], 2, "--top-p: must be above 0 and at most 1, not 1.5"),
        (["a.png", "night", "--temperature", "nan"], 2, "--temperature: must be 0 (greedy) or at least 0.000001"),
        (["a.png", "night", "--top-k", "many"], 2, "--top-k"),
        (["a.png", "night", "--device", "toaster"], 2, "toaster"),
        (["a.png", "night", "--model", "no/such/folder/here"], 4, "no/such/folder/here"),
    ],
)
def test_every_mistake_is_one_clear_message(earl, args: list[str], code: int, expected: str) -> None:
    photo(Path("a.png"))
    _, err = earl(*args, code=code)
    assert expected in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_a_damaged_model_is_named(earl, tiny_model_dir: Path, tmp_path: Path) -> None:
    photo(Path("a.png"))
    shutil.copytree(tiny_model_dir, "model")
    weights = Path("model/model.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:1000])
    _, err = earl("a.png", "night", "--model", "model", code=4)
    assert "model" in err


# -- odd images --------------------------------------------------------------------------------------------------------


def test_one_pixel(earl) -> None:
    Image.new("RGB", (1, 1), "red").save("dot.png")
    earl("dot.png", "make it snowy")
    assert opened("dot.edited.png").size == (1, 1)


def test_extreme_shapes(earl) -> None:
    photo(Path("long.png"), (400, 3))
    earl("long.png", "make it snowy")
    assert opened("long.edited.png").size == (400, 3)


def test_sixteen_bits(earl) -> None:
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(values).save("deep.png")
    earl("deep.png", "make it snowy")
    assert opened("deep.edited.png").size == (60, 40)


def test_cmyk(earl) -> None:
    Image.new("CMYK", (60, 40), (0, 200, 200, 20)).save("print.jpg")
    earl("print.jpg", "make it snowy")
    assert opened("print.edited.jpg").mode == "RGB"


def test_spaces_and_other_letters_in_names(earl) -> None:
    photo(Path("mein Föto ❄.png"))
    earl("mein Föto ❄.png", "make it snowy")
    assert Path("mein Föto ❄.edited.png").is_file()


def test_alpha_profile_and_exif_are_kept(earl) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo(Path("turned.jpg"), exif=exif, icc_profile=profile)
    earl("turned.jpg", "make it snowy")
    edited = opened("turned.edited.jpg")
    assert edited.size == (40, 60)  # upright now
    assert edited.getexif()[0x010F] == "A maker"
    assert 0x0112 not in edited.getexif()
    assert edited.info["icc_profile"] == profile
    cut_out = Image.new("RGBA", (60, 40), (200, 30, 30, 255))
    cut_out.putalpha(Image.linear_gradient("L").resize((60, 40)))
    cut_out.save("cut.png")
    earl("cut.png", "make it snowy")
    assert np.asarray(opened("cut.edited.png"))[..., 3].min() < 128


def test_what_is_lost_is_reported_once_for_all_variants(earl) -> None:
    """A PNG under a JPEG's name: its transparency has no place there, nor has its text."""
    cut_out = Image.new("RGBA", (60, 40), (200, 30, 30, 255))
    cut_out.putalpha(Image.linear_gradient("L").resize((60, 40)))
    info = PngInfo()
    info.add_text("Author", "me")
    cut_out.save("cut.jpg", "PNG", pnginfo=info)
    _, err = earl("cut.jpg", "make it snowy", "-n", "3", "--grid")
    assert opened("cut.edited.jpg").format == "JPEG"
    assert err.count("what was transparent is white") == 1
    assert err.count("Author left out") == 1


def test_a_private_photo_stays_private(earl) -> None:
    photo(Path("a.png"))
    Path("a.png").chmod(0o600)
    earl("a.png", "night", "--compare")
    assert Path("a.edited.png").stat().st_mode & 0o777 == 0o600
    assert Path("a.edited.compare.png").stat().st_mode & 0o777 == 0o600
    photo(Path("b.png"))
    Path("b.png").chmod(0o644)
    earl("b.png", "night", "-o", "a.edited.png", "--force")
    assert Path("a.edited.png").stat().st_mode & 0o777 == 0o600


def test_an_unsupported_image_is_named_alone_and_in_a_folder(earl) -> None:
    Path("in").mkdir()
    Path("in/a.psd").write_bytes(b"8BPS" + bytes(80))
    _, err = earl("in/a.psd", "night", code=3)
    assert "this is a Photoshop document (PSD), which can't be read" in err
    assert "save it as PNG" in err
    photo(Path("in/b.png"))
    _, err = earl("in", "night", code=7)
    assert Path("in/b.edited.png").is_file()
    assert "a.psd: this is a Photoshop document" in err
