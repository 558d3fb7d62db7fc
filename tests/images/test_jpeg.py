"""A JPEG without its end marker is an image if nothing else is missing, and cut short if anything is."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import file_of
from PIL import Image

from earl_cli.errors import InputError
from earl_cli.images.image_file import open_image

COARSE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PHOTO = Image.fromarray(COARSE).resize((120, 90), Image.Resampling.BICUBIC)
WAYS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarting": {"restart_marker_blocks": 2},
    "grey": {},
    "noisy": {"quality": 100, "subsampling": 0},
}


def written(way: str) -> bytes:
    image = PHOTO.convert("L") if way == "grey" else PHOTO
    if way == "noisy":
        noise = np.random.default_rng(1).integers(0, 60, (90, 120, 3))
        image = Image.fromarray((np.asarray(PHOTO) * 0.7 + noise).astype(np.uint8))
    return file_of(image, "JPEG", **WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_only_the_end_marker_may_be_missing(way: str) -> None:
    whole = written(way)
    for cut in (1, 2):
        opened = open_image(whole[:-cut])
        assert opened.rgb.tobytes() == open_image(whole).rgb.tobytes()
        assert opened.notes == ("the file's end is missing, but no pixel is",)
    for cut in (5, 12, 40, 200, len(whole) // 3, len(whole) // 2):
        with pytest.raises(InputError, match="cut short"):
            open_image(whole[:-cut])


def test_a_progressive_jpeg_that_lacks_whole_scans_is_cut_short() -> None:
    whole = written("progressive")
    last = whole.rindex(b"\xff\xda")
    for scan in (last, whole.rindex(b"\xff\xda", 0, last)):
        for start in (scan, whole.rindex(b"\xff\xc4", 0, scan)):
            with pytest.raises(InputError, match="cut short"):
                open_image(whole[:start])


def test_restart_intervals_that_are_missing_are_pixels_that_are_missing() -> None:
    whole = written("restarting")
    marks = [at for at in range(len(whole) - 1) if whole[at] == 0xFF and 0xD0 <= whole[at + 1] <= 0xD7]
    assert len(marks) > 8
    for mark in marks[-8:]:
        for cut in (mark, mark + 2):
            with pytest.raises(InputError, match="cut short"):
                open_image(whole[:cut])


def test_data_after_the_end_are_ignored() -> None:
    whole = written("baseline")
    opened = open_image(whole + b"a film, or whatever" * 100)
    assert (opened.rgb.tobytes(), opened.notes) == (open_image(whole).rgb.tobytes(), ())
