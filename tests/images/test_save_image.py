"""An image is saved whole, with what came with it, or not at all."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from earl_cli.errors import OutputError, UsageError
from earl_cli.images.image_file import ImageFile, open_image, save_image
from earl_cli.images.metadata import ImageMetadata

COLORS = np.arange(12 * 16 * 3, dtype=np.uint32).reshape(12, 16, 3).astype(np.uint8)
RGB = Image.fromarray(COLORS)


def like(format: str = "JPEG", **changes: object) -> ImageFile:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    side = ImageMetadata(**({"icc": profile, "exif": exif.tobytes()} | changes))  # type: ignore[arg-type]
    return ImageFile(RGB, side, format, ())


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.JPG", "a.webp"])
def test_formats_by_name_keep_profile_and_exif(tmp_path: Path, name: str) -> None:
    path, original = tmp_path / name, like()
    save_image(RGB, path, like=original, texts={"instruction": "make it blue"})
    with Image.open(path) as saved:
        assert saved.format == {"png": "PNG", "webp": "WEBP"}.get(path.suffix.lower()[1:], "JPEG")
        assert saved.info["icc_profile"] == original.metadata.icc
        assert saved.getexif()[0x010F] == "a camera"
        assert saved.size == RGB.size
    assert [each.name for each in tmp_path.iterdir()] == [name]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=200))
def test_png_carries_any_text(text: str) -> None:
    stream = io.BytesIO()
    save_image(RGB, stream, format="png", texts={"instruction": text})
    with Image.open(io.BytesIO(stream.getvalue())) as saved:
        assert saved.text["instruction"] == text.replace("\0", " ")  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(saved), COLORS)


def test_text_from_a_terminal_in_another_encoding_is_saved_too() -> None:
    stream = io.BytesIO()
    save_image(RGB, stream, texts={"instruction": "caf\udce9"})
    with Image.open(stream) as saved:
        assert saved.text["instruction"] == "caf?"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.xyz", "a"])
def test_other_formats_are_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.png.*\.jpg.*\.webp"):
        save_image(RGB, tmp_path / name)
    with pytest.raises(UsageError, match="png"):
        save_image(RGB, io.BytesIO(), format="gif")


@pytest.mark.parametrize(("own", "expected"), [("JPEG", "JPEG"), ("WEBP", "WEBP"), ("GIF", "PNG"), ("TIFF", "PNG")])
def test_a_stream_gets_the_sources_format_where_it_can(own: str, expected: str) -> None:
    stream = io.BytesIO()
    save_image(RGB, stream, like=like(format=own))
    with Image.open(io.BytesIO(stream.getvalue())) as saved:
        assert saved.format == expected


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_alpha_returns_where_the_format_has_it(tmp_path: Path, name: str) -> None:
    alpha = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (12, 1))
    source = tmp_path / "source.png"
    Image.fromarray(np.dstack([COLORS, alpha])).save(source)
    opened = open_image(source)
    lost = save_image(opened.pixels, tmp_path / name, like=opened)
    again = open_image(tmp_path / name)
    if name == "a.jpg":
        assert again.pixels.mode == "RGB"
        assert np.abs(np.asarray(again.rgb).astype(int) - np.asarray(opened.rgb)).mean() < 6
        assert any("transparency" in note for note in lost)
    else:
        assert np.array_equal(np.asarray(again.pixels)[..., 3], alpha)
        assert lost == ()
    if name == "a.png":  # nothing was edited
        assert np.array_equal(np.asarray(again.pixels), np.asarray(opened.pixels))


def test_a_device_is_written_to_and_not_replaced() -> None:
    save_image(RGB, Path("/dev/null"), format="png")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_an_old_file_is_replaced_whole_with_usual_rights(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    save_image(RGB, path)
    assert np.array_equal(np.asarray(open_image(path).rgb), COLORS)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException] | BaseException
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((KeyboardInterrupt, OutputError)) as caught:
        save_image(RGB, path)
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="No space left"):
        save_image(RGB, Path("/dev/full"), format="png")


def test_folders_and_missing_folders_are_output_errors(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "missing" / "a.png"):
        with pytest.raises(OutputError, match="can't be written"):
            save_image(RGB, path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_an_image_too_wide_for_the_format_says_which_fits(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"17000 x 1.*WEBP.*16383.*png"):
        save_image(Image.new("RGB", (17_000, 1)), tmp_path / "a.webp")


def test_more_exif_than_a_jpeg_can_hold_is_left_out() -> None:
    exif = Image.Exif()
    exif[0x010E] = "long " * 20_000
    stream = io.BytesIO()
    lost = save_image(RGB, stream, format="jpeg", like=like(exif=exif.tobytes()))
    assert open_image(stream.getvalue()).metadata.exif is None
    assert any("EXIF" in note for note in lost)
