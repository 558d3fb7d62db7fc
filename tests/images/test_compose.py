"""An edit drawn small and soft comes out at the photo's own size with the photo's own detail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from earl_cli.images.arrays import gaussian_blur
from earl_cli.images.compose import compose

Pixels = NDArray[np.float32]
WIDTH, HEIGHT = 336, 240
SMALL = (112, 80)


def scene() -> NDArray[np.uint8]:
    """Sky, hills, a house and grass: large areas, edges and texture, and no symmetry."""
    rng = np.random.default_rng(3)
    image = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    for y in range(HEIGHT):
        draw.line((0, y, WIDTH, y), fill=(110 + y // 3, 150 + y // 4, 225 - y // 4))
    draw.polygon([(0, 150), (90, 80), (190, 140), (WIDTH, 110), (WIDTH, HEIGHT), (0, HEIGHT)], fill=(60, 110, 60))
    draw.rectangle((200, 110, 280, 180), fill=(190, 120, 80))
    draw.polygon([(190, 110), (240, 70), (290, 110)], fill=(120, 50, 45))
    draw.rectangle((225, 140, 245, 180), fill=(60, 45, 40))
    draw.ellipse((40, 20, 75, 55), fill=(250, 240, 190))
    grain = rng.normal(0, 14, (HEIGHT, WIDTH, 1)) * np.linspace(0.2, 1.4, HEIGHT)[:, None, None]
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)


PHOTO = scene()


def as_generated(image: NDArray[np.uint8] | Pixels, noise: float = 0.0, seed: int = 0) -> Pixels:
    """What a model with 8 x 8 cells would show of it: small, soft, and every cell a little wrong."""
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    small = np.asarray(Image.fromarray(image).resize(SMALL, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    errors = np.random.default_rng(seed).normal(0, 1, (SMALL[1] // 8, SMALL[0] // 8, 3)).astype(np.float32)
    return np.clip(gaussian_blur(small, 1.0) + noise * np.repeat(np.repeat(errors, 8, 0), 8, 1), 0, 1).astype(
        np.float32
    )


def removed(edited: NDArray[np.uint8], target: Pixels, source: NDArray[np.uint8] = PHOTO) -> float:
    """1 - MSE(edited, target) / MSE(source, target)."""
    goal = np.clip(target, 0, 1) * 255
    return float(1 - ((edited - goal) ** 2).mean() / ((source - goal) ** 2).mean())


def light(rgb: Pixels) -> Pixels:
    return (rgb @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]


def fog(rgb: Pixels) -> Pixels:
    share = np.linspace(0.85, 0.3, len(rgb), dtype=np.float32)[:, None, None]
    return rgb * (1 - share) + 0.82 * share


EDITS: dict[str, Callable[[Pixels], Pixels]] = {
    "brighter": lambda rgb: rgb**0.6,
    "darker": lambda rgb: rgb * 0.55,
    "warmer": lambda rgb: rgb * np.float32([1.16, 1.02, 0.75]),
    "black and white": lambda rgb: np.repeat(light(rgb), 3, axis=2),
    "negative": lambda rgb: 1 - rgb,
    "contrast": lambda rgb: (rgb - 0.47) * 1.6 + 0.47,
    "night": lambda rgb: (0.5 * rgb + 0.5 * light(rgb)) ** 1.3 * np.float32([0.26, 0.34, 0.58]),
    "fog": fog,
    "mirror": lambda rgb: rgb[:, ::-1],
    "upside down": lambda rgb: rgb[::-1],
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.95), (0.03, 0.9)])
def test_edits_of_the_whole_image_are_found_through_noise(name: str, noise: float, least: float) -> None:
    target = EDITS[name](PHOTO.astype(np.float32) / 255).astype(np.float32)
    assert removed(compose(PHOTO, as_generated(PHOTO), as_generated(target, noise)).pixels, target) > least


def test_detail_is_the_photos_own() -> None:
    """Enlarging what the model drew would lose the grain; the composition keeps it."""
    target = 1 - PHOTO.astype(np.float32) / 255
    after = as_generated(target)
    enlarged = Image.fromarray((after * 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    left = 1 - removed(compose(PHOTO, as_generated(PHOTO), after).pixels, target)
    assert left < 0.1 * (1 - removed(np.asarray(enlarged), target))


def test_blur_blurs_the_photo_too() -> None:
    target = np.asarray(Image.fromarray(PHOTO).filter(ImageFilter.GaussianBlur(7)), dtype=np.float32) / 255
    assert removed(compose(PHOTO, as_generated(PHOTO), as_generated(target, 0.01)).pixels, target) > 0.8


@pytest.mark.parametrize("kind", ["circle", "square"])
@pytest.mark.parametrize("place", [(80, 80), (250, 190), (170, 60)])
def test_a_flat_shape_gets_a_crisp_edge_and_leaves_the_rest_alone(kind: str, place: tuple[int, int]) -> None:
    image = Image.fromarray(PHOTO)
    draw = ImageDraw.Draw(image)
    x, y = place
    box = (x - 38, y - 38, x + 38, y + 38)
    (draw.ellipse if kind == "circle" else draw.rectangle)(box, fill=(220, 30, 30))
    target = np.asarray(image, dtype=np.float32) / 255
    edited = compose(PHOTO, as_generated(PHOTO), as_generated(target, 0.02)).pixels
    assert removed(edited, target) > 0.85
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    far = np.maximum(abs(rows - y), abs(columns - x)) > 60
    assert np.abs(edited[far].astype(int) - PHOTO[far]).mean() < 2


def test_new_content_is_taken_from_the_model() -> None:
    stripes = PHOTO.copy()
    stripes[60:180, 60:200] = np.where((np.arange(140) // 24 % 2)[None, :, None] == 1, [240, 230, 40], [120, 20, 160])
    target = stripes.astype(np.float32) / 255
    edited = compose(PHOTO, as_generated(PHOTO), as_generated(target, 0.02)).pixels
    assert removed(edited, target) > 0.6
    assert np.abs(edited[200:, 240:].astype(int) - PHOTO[200:, 240:]).mean() < 2


def test_equal_images_leave_the_photo_unchanged() -> None:
    assert np.array_equal(compose(PHOTO, as_generated(PHOTO), as_generated(PHOTO)).pixels, PHOTO)


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_changes_next_to_nothing(seed: int) -> None:
    before = as_generated(PHOTO)
    edited = compose(PHOTO, before, as_generated(PHOTO, 0.03, seed)).pixels
    assert np.abs(edited.astype(int) - PHOTO).mean() < 3


def test_a_few_wrong_cells_are_ignored() -> None:
    before = as_generated(PHOTO)
    after = before.copy()
    for row, column in ((2, 3), (5, 9), (8, 1)):
        after[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = (0.9, 0.1, 0.5)
    assert np.abs(compose(PHOTO, before, after).pixels.astype(int) - PHOTO).max() <= 2


def test_the_same_images_give_the_same_edit() -> None:
    before, after = as_generated(PHOTO), as_generated(fog(PHOTO.astype(np.float32) / 255), 0.03)
    assert np.array_equal(compose(PHOTO, before, after).pixels, compose(PHOTO, before, after).pixels)


def test_strips_leave_no_seams() -> None:
    """A smooth photo under a smooth edit stays smooth from row to row, whatever the strips it is worked on in."""
    photo = np.full((600, 150, 3), 128, np.uint8)
    before = np.full((80, 112, 3), 0.5, np.float32)
    ramp = np.linspace(0.2, 0.8, 80, dtype=np.float32)[:, None, None]
    edited = compose(photo, before, np.broadcast_to(ramp, (80, 112, 3)).astype(np.float32)).pixels
    assert np.abs(np.diff(edited.astype(int), axis=0)).max() <= 2
    assert edited[-1].mean() - edited[0].mean() > 80


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([(1, 1), (12, 12), (1, 20), (10, 14)]), st.integers(0, 9)
)
def test_any_size_of_photo_and_of_grid(height: int, width: int, grid: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    before, after = rng.random((2, grid[0] * 8, grid[1] * 8, 3), dtype=np.float32)
    edited = compose(photo, before, after).pixels
    assert edited.shape == photo.shape
    assert edited.dtype == np.uint8


def cut_out() -> NDArray[np.uint8]:
    """The photo in a soft oval that isn't in the middle; black where nothing is to be seen."""
    mask = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(mask).ellipse((30, 40, 250, 220), fill=255)
    alpha = np.asarray(mask.filter(ImageFilter.GaussianBlur(4)))
    return np.dstack([np.where(alpha[..., None] > 0, PHOTO, 0).astype(np.uint8), alpha])


def flat(pixels: NDArray[np.uint8], ground: float = 1.0) -> Pixels:
    """As it looks on a grey ground."""
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return pixels[..., :3] / np.float32(255) * alpha + (1 - alpha) * np.float32(ground)


@pytest.mark.parametrize("name", ["darker", "warmer", "black and white", "night", "fog"])
def test_the_colours_of_a_cut_out_change_without_the_white_behind_it(name: str) -> None:
    photo = cut_out()
    seen = flat(photo)
    edited = compose(photo, as_generated(seen), as_generated(EDITS[name](seen))).pixels
    assert np.array_equal(edited[..., 3], photo[..., 3])
    alpha = photo[..., 3:].astype(np.float32) / 255
    colors = photo[..., :3].astype(np.float32) / 255
    rim = (alpha[..., 0] > 0.2) & (alpha[..., 0] < 0.8)
    assert np.abs(edited[..., :3] / 255 - EDITS[name](colors))[rim].mean() < 0.02


def test_a_mirrored_cut_out_has_its_outline_mirrored() -> None:
    photo = cut_out()
    seen = flat(photo)
    edited = compose(photo, as_generated(seen), as_generated(seen[:, ::-1])).pixels
    assert np.array_equal(edited, photo[:, ::-1])


def test_a_blurred_cut_out_has_a_blurred_outline() -> None:
    photo = cut_out()
    seen = flat(photo)
    edited = compose(photo, as_generated(seen), as_generated(gaussian_blur(np.ascontiguousarray(seen), 9))).pixels
    goal = np.asarray(Image.fromarray(photo[..., 3]).filter(ImageFilter.GaussianBlur(9))).astype(int)
    assert np.abs(edited[..., 3] - goal).mean() < 0.3 * np.abs(photo[..., 3] - goal).mean()


def test_a_shape_beside_a_cut_out_is_visible() -> None:
    photo = cut_out()
    target = flat(photo).copy()
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    disc = (columns - 290) ** 2 + (rows - 60) ** 2 < 28**2
    target[disc] = (0.9, 0.85, 0.1)
    edited = compose(photo, as_generated(flat(photo)), as_generated(target)).pixels
    assert (edited[..., 3][disc] > 250).mean() > 0.9
    assert np.abs(edited[60, 290, :3] / 255 - (0.9, 0.85, 0.1)).max() < 0.1
    far = (columns - 290) ** 2 + (rows - 60) ** 2 > 40**2
    assert np.array_equal(edited[..., 3][far], photo[..., 3][far])


def test_new_content_makes_a_cut_out_no_more_opaque_than_it_takes() -> None:
    photo = cut_out()
    target = flat(photo).copy()
    rng = np.random.default_rng(5)
    target[140:220, 230:310] = np.repeat(np.repeat(rng.uniform(0, 0.7, (10, 10, 3)), 8, 0), 8, 1)
    edited = compose(photo, as_generated(flat(photo)), as_generated(target)).pixels
    assert np.median(edited[150:210, 290:305, 3]) > 90  # where nothing was
    on_white = (flat(photo) * 255 + 0.5).astype(np.uint8)
    assert (
        np.abs(flat(edited) * 255 - compose(on_white, as_generated(flat(photo)), as_generated(target)).pixels).max() < 4
    )
    assert np.array_equal(edited[:100, :, 3], photo[:100, :, 3])


SQUEEZED = (72, 128)


def seen_small(image: NDArray[np.uint8] | Pixels, noise: float, size: tuple[int, int] = SMALL) -> Pixels:
    """As `drawn`, at another size: cells are wrong in colour, not in lightness alone."""
    pixels = image if image.dtype == np.uint8 else (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    errors = np.random.default_rng(5).normal(0, noise, (size[1] // 8, size[0] // 8, 3)).astype(np.float32)
    return np.clip(gaussian_blur(small, 1.0) + np.repeat(np.repeat(errors, 8, 0), 8, 1), 0, 1).astype(np.float32)


def wrong_patch(after: Pixels, color: tuple[float, float, float] = (0.9, 0.1, 0.6)) -> Pixels:
    """``after`` with a large patch that has no business there."""
    spoiled = after.copy()
    spoiled[24:56, 40:80] = color
    return spoiled


@pytest.mark.parametrize("effects", [["recolor"], ["grade"], ["tone"], ["grey"]])
def test_a_change_of_colours_adds_nothing(effects: list[str]) -> None:
    """A patch that the model drew where only colours can change isn't taken over; without that knowledge it is."""
    target = EDITS["darker"](PHOTO.astype(np.float32) / 255)
    after = wrong_patch(seen_small(target, 0.02))
    rows, columns = np.s_[90:150], np.s_[140:220]
    free = compose(PHOTO, as_generated(PHOTO), after).pixels[rows, columns].astype(float)
    known = compose(PHOTO, as_generated(PHOTO), after, effects).pixels[rows, columns].astype(float)
    goal = target[rows, columns] * 255
    if effects in (["tone"], ["grey"]):
        goal = np.repeat(light(goal), 3, axis=2)
    assert np.abs(known - goal).mean() < 18 < np.abs(free - goal).mean()


@pytest.mark.parametrize("effects", [None, ["grey"]])
def test_black_and_white_has_no_colour_left(effects: list[str] | None) -> None:
    photo = PHOTO.copy()
    photo[30:80, 150:220] = (230, 20, 160)  # more saturated than anything else
    target = np.repeat(light(photo.astype(np.float32) / 255), 3, axis=2)
    edited = compose(photo, as_generated(photo), seen_small(target, 0.03), effects).pixels
    assert np.ptp(edited, axis=-1).max() <= 1
    assert removed(edited, target, photo) > 0.9


@pytest.mark.parametrize("name", ["brighter", "darker", "contrast", "negative"])
def test_greys_stay_grey_without_a_cast(name: str) -> None:
    grey = np.repeat(light(PHOTO.astype(np.float32)), 3, axis=2).astype(np.uint8)
    tinted = seen_small(EDITS[name](grey.astype(np.float32) / 255) * np.float32([1.05, 0.98, 1.0]), 0.02)
    edited = compose(grey, as_generated(grey), tinted, ["grade"]).pixels
    assert np.ptp(edited, axis=-1).max() <= 1
    assert removed(edited, EDITS[name](grey.astype(np.float32) / 255), grey) > 0.7


def test_sepia_depends_on_lightness_alone() -> None:
    target = light(PHOTO.astype(np.float32) / 255) * np.float32([1.07, 0.86, 0.62]) + np.float32([0.06, 0.03, 0])
    edited = compose(PHOTO, as_generated(PHOTO), seen_small(target, 0.03), ["tone"]).pixels
    assert removed(edited, target) > 0.95
    lightness = light(edited.astype(np.float32)).ravel()
    assert np.polyfit(lightness, edited[..., 0].ravel(), 2, full=True)[1][0] / edited[..., 0].size < 2


def test_a_mirrored_photo_is_its_own_mirror_image() -> None:
    cast = seen_small(PHOTO[:, ::-1].astype(np.float32) / 255 * np.float32([1.1, 1.0, 0.9]), 0.04)
    assert np.array_equal(compose(PHOTO, as_generated(PHOTO), cast, ["mirror"]).pixels, PHOTO[:, ::-1])


def test_a_photo_that_is_nearly_symmetric_is_mirrored_too() -> None:
    photo = ((PHOTO[:, ::-1].astype(np.uint16) + PHOTO) // 2).astype(np.uint8)
    photo[150:200, 60:110] = (150, 60, 60)
    mirrored = seen_small(photo[:, ::-1], 0.02)
    assert np.array_equal(compose(photo, as_generated(photo), mirrored, ["mirror"]).pixels, photo[:, ::-1])


def test_a_soft_photo_is_blurred_too() -> None:
    """Where hardly anything can get softer, the blur of the instruction is estimated all the same."""
    smooth = np.asarray(Image.fromarray(PHOTO).filter(ImageFilter.GaussianBlur(3)))
    target = np.asarray(Image.fromarray(smooth).filter(ImageFilter.GaussianBlur(10)), dtype=np.float32) / 255
    edited = compose(smooth, as_generated(smooth), seen_small(target, 0.02), ["blur"]).pixels
    assert removed(edited, target, smooth) > 0.7


def with_disc(color: tuple[int, int, int], box: tuple[int, int, int, int]) -> Pixels:
    image = Image.fromarray(PHOTO)
    ImageDraw.Draw(image).ellipse(box, fill=color)
    return np.asarray(image, dtype=np.float32) / 255


def test_a_disc_is_a_disc_and_nothing_else_changes() -> None:
    """Also one drawn with straight edges, in a colour that is everywhere around it, beside a patch that is wrong."""
    target = with_disc((120, 60, 50), (200, 90, 280, 170))
    after = seen_small(target, 0.02)
    after[32:56, 68:92] = np.array((120, 60, 50), np.float32) / 255
    edited = compose(PHOTO, as_generated(PHOTO), wrong_patch(after, (0.5, 0.7, 0.9)), ["disc"])
    assert edited.missing == ()
    changed = np.abs(edited.pixels.astype(int) - PHOTO).max(axis=-1) > 0
    rows, columns = np.nonzero(changed)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 3
    assert changed.sum() / (np.ptp(rows) * np.ptp(columns)) == pytest.approx(np.pi / 4, abs=0.05)


def test_a_disc_stays_round_in_a_photo_that_was_squeezed() -> None:
    tall = np.asarray(Image.fromarray(PHOTO).resize((450, 1000)))
    image = Image.fromarray(tall)
    ImageDraw.Draw(image).ellipse((153, 428, 297, 572), fill=(220, 30, 30))
    before, after = seen_small(tall, 0.0, SQUEEZED), seen_small(np.asarray(image), 0.02, SQUEEZED)
    edited = compose(tall, before, after, ["disc"]).pixels
    rows, columns = np.nonzero(np.abs(edited.astype(int) - tall).max(axis=-1) > 30)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 4
    assert np.ptp(columns) == pytest.approx(144, abs=25)


@pytest.mark.parametrize(
    ("effects", "noise", "missing"),
    [
        (["disc"], 0.02, ("disc",)),
        (["mirror"], 0.02, ("mirroring",)),
        (["blur"], 0.02, ("blur",)),
        (["recolor"], 0.0, ("change of colours",)),
        (["recolor", "disc"], 0.0, ("change of colours", "disc")),
    ],
)
def test_missing_effects_are_named(effects: list[str], noise: float, missing: tuple[str, ...]) -> None:
    edited = compose(PHOTO, as_generated(PHOTO), as_generated(PHOTO, noise), effects)
    assert edited.missing == missing
    assert np.array_equal(edited.pixels, PHOTO)
