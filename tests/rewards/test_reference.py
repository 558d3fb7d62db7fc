"""The reward that needs no judge: its scale, its invariances, and which of two edits it prefers on real photos."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFilter

from earl_cli.rewards.reference import MIN_DISTANCE, distance, distance_map, image_features, oklab, reference_reward
from earl_cli.rewards.reward import Edit, Pixels, Reward, Score

PHOTOS = Path(__file__).parents[2] / "docs" / "photos"
NAMES = ("palace", "cat", "coffee", "rocket")
pictures = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda size: st.lists(arrays(np.uint8, (*size, 3)), min_size=3, max_size=3)
)


def photo(name: str, side: int = 96) -> Image.Image:
    with Image.open(PHOTOS / f"{name}.jpg") as opened:
        return opened.convert("RGB").resize((side, side))


def score(source: object, target: object, edited: object) -> Score:
    def pixels(image: object) -> Pixels | None:
        return None if image is None else np.asarray(image, dtype=np.uint8)

    given = pixels(source)
    assert given is not None
    (found,) = reference_reward([Edit("row", "change it", given, pixels(edited), pixels(target))])
    return found


def value(source: object, target: object, edited: object) -> float:
    found = score(source, target, edited).value
    assert found is not None
    return found


# -- edits by hand -----------------------------------------------------------------------------------------------------


def snowy(image: Image.Image, seed: int, flakes: int = 250) -> Image.Image:
    places = np.random.default_rng(seed)
    snow = Image.blend(image, Image.new("RGB", image.size, (200, 205, 215)), 0.15)
    pen = ImageDraw.Draw(snow)
    for _ in range(flakes):
        x, y = places.integers(0, image.width, 2)
        r = places.choice([0.5, 1, 1.5])
        pen.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255))
    return snow


def night(image: Image.Image, strength: float = 1.0) -> Image.Image:
    dark = Image.fromarray((np.asarray(image) * np.array([0.4, 0.48, 0.72])).astype(np.uint8))
    return Image.blend(image, dark, strength)


def with_ball(
    image: Image.Image, x: int = 30, y: int = 30, colour: tuple[int, int, int] = (220, 30, 30)
) -> Image.Image:
    edited = image.copy()
    ImageDraw.Draw(edited).ellipse([x - 12, y - 12, x + 12, y + 12], fill=colour)
    return edited


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def blurred(image: Image.Image, radius: float = 2) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def squeezed(image: Image.Image) -> Image.Image:
    """Through JPEG at a low quality: about as wrong as an image that goes through codes."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "snowy": lambda image: snowy(image, 0),
    "night": night,
    "ball": with_ball,
    "mirrored": mirrored,
    "blurred": blurred,
    "grey": lambda image: image.convert("L").convert("RGB"),
}


# -- its scale ---------------------------------------------------------------------------------------------------------


def test_the_reference_is_a_reward() -> None:
    reward: Reward = reference_reward
    assert reward([]) == []


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", NAMES)
def test_the_target_scores_1_and_the_source_0(name: str, edit: str) -> None:
    source = photo(name)
    target = EDITS[edit](source)
    found = score(source, target, target)
    assert found.value == 1
    assert found.parts == {"removed": 1, "colour": 1, "structure": 1}
    assert value(source, target, source) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", NAMES)
def test_the_reward_rises_from_the_source_to_the_target(name: str, edit: str) -> None:
    source, target = photo(name), EDITS[edit](photo(name))
    along = [value(source, target, Image.blend(source, target, share)) for share in np.linspace(0, 1, 6)]
    assert (np.diff(along) > 0).all()
    assert min(along) >= -0.02


@given(pictures)
def test_any_images_get_a_reward_in_the_range(three: list[Pixels]) -> None:
    found = score(*three)
    assert found.value is not None
    assert -1 <= found.value <= 1
    assert found.value == min(1, max(-1, found.parts["removed"]))
    assert set(found.parts) == {"removed", "colour", "structure"}


@given(pictures)
def test_the_distance_is_a_metric(three: list[Pixels]) -> None:
    one, two, other = map(image_features, three)
    assert distance(one, one).total == 0
    assert distance(one, two) == distance(two, one)
    assert (distance(one, two).total > 0) == (not np.array_equal(three[0], three[1]))
    assert distance(one, two).total <= distance(one, other).total + distance(other, two).total + 1e-12


def test_the_reward_is_clipped_at_the_lowest() -> None:
    source, target = np.full((16, 16, 3), 120), np.full((16, 16, 3), 130)
    assert value(source, target, np.full((16, 16, 3), 255)) == -1
    assert score(source, target, np.full((16, 16, 3), 255)).parts["removed"] < -5


def test_an_invalid_edit_scores_lowest_and_one_without_target_none() -> None:
    source = photo("cat")
    assert score(source, night(source), None) == Score(-1, reason="the edit is invalid or incomplete")
    assert score(source, None, source) == Score(None, reason="there is no target image to compare with")
    assert score(source, None, None).value is None


def test_without_a_change_only_visible_changes_cost() -> None:
    source = np.asarray(photo("cat"))
    unseen = source.copy()
    unseen[::7, ::7] ^= 1
    assert value(source, source, source) == 1
    assert value(source, source, unseen) > 0.95
    assert value(source, source, night(photo("cat"))) == -1
    assert distance(image_features(source), image_features(unseen)).total < MIN_DISTANCE / 20


# -- what it is made of ------------------------------------------------------------------------------------------------


def test_oklab_is_the_published_space() -> None:
    known = {  # the space's own table, and CSS Color 4
        (255, 255, 255): (1, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (255, 0, 0): (0.62796, 0.22486, 0.12585),
        (0, 255, 0): (0.86644, -0.23389, 0.17950),
        (0, 0, 255): (0.45201, -0.03246, -0.31153),
        (128, 128, 128): (0.59987, 0, 0),
    }
    np.testing.assert_allclose(oklab(np.array(list(known), np.uint8)), list(known.values()), atol=2e-5)
    assert oklab(np.zeros((2, 3, 3), np.uint8)).dtype == np.float64


def test_black_and_white_are_1_apart() -> None:
    black, white = np.zeros((40, 30, 3), np.uint8), np.full((40, 30, 3), 255, np.uint8)
    found = distance(image_features(black), image_features(white))
    assert (found.colour, found.structure) == pytest.approx((1, 0), abs=1e-6)


def test_colour_and_structure_are_separate() -> None:
    source = photo("cat")
    tinted = Image.blend(source, Image.new("RGB", source.size, (60, 90, 255)), 0.2)
    fuzzy = blurred(source)
    by_tint = distance(image_features(np.asarray(source)), image_features(np.asarray(tinted)))
    by_blur = distance(image_features(np.asarray(source)), image_features(np.asarray(fuzzy)))
    assert by_tint.colour / by_tint.structure > 4 * by_blur.colour / by_blur.structure


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40))
def test_an_edit_is_resized_to_the_target(width: int, height: int) -> None:
    plain = [np.full((20, 30, 3), level, np.uint8) for level in (50, 200)]
    assert value(plain[0], plain[1], np.full((height, width, 3), 200, np.uint8)) == 1
    assert value(np.full((height, width, 3), 50, np.uint8), plain[1], plain[0]) == pytest.approx(0)


def test_a_larger_edit_of_the_same_content_scores_nearly_as_high() -> None:
    target = night(photo("palace"))
    assert value(photo("palace"), target, target.resize((144, 144), Image.Resampling.BICUBIC)) > 0.85


# -- which of two it prefers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_snow_at_other_positions_scores_high(name: str) -> None:
    source = photo(name)
    target = snowy(source, 0)
    ranked = [target, squeezed(target), snowy(source, 1), snowy(source, 2, 60), source, night(source)]
    values = [value(source, target, edited) for edited in ranked]
    assert values == sorted(values, reverse=True)
    assert min(np.diff(values[::-1])) > 0.05
    assert values[2] > 0.4


@pytest.mark.parametrize("name", NAMES)
def test_a_darker_night_scores_by_its_strength(name: str) -> None:
    source = photo(name)
    target = night(source)
    ranked = [squeezed(target), night(source, 0.6), night(source, 0.3), squeezed(source), snowy(source, 0)]
    values = [value(source, target, edited) for edited in ranked]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.85
    assert values[1] - values[2] > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_disc_keeps_its_position_and_colour(name: str) -> None:
    source = photo(name)
    target = with_ball(source)
    right, near, elsewhere = with_ball(source), with_ball(source, 34, 32), with_ball(source, 75, 70)
    values = [value(source, target, edited) for edited in (right, squeezed(right), near, source, elsewhere)]
    assert values[0] == 1
    assert min(values[1:3]) > 0.2
    assert values[3] == pytest.approx(0, abs=1e-12)
    assert values[4] < -0.2
    assert value(source, target, with_ball(source, colour=(200, 60, 40))) > 0.4


@pytest.mark.parametrize("name", NAMES)
def test_mirrored_and_blurred_for_what_they_are(name: str) -> None:
    source = photo(name)
    target = mirrored(source)
    assert value(source, target, squeezed(target)) > 0.75
    assert value(source, target, blurred(source)) < 0.2
    soft = blurred(source)
    values = [value(source, soft, edited) for edited in (blurred(source, 1.8), blurred(source, 1.2), source)]
    assert values == sorted(values, reverse=True)
    assert value(source, soft, night(source)) < 0


def test_a_group_has_the_scores_of_its_edits_alone() -> None:
    source, target = np.asarray(photo("cat")), np.asarray(night(photo("cat")))
    group = [
        Edit(str(i), "night", source, np.asarray(night(photo("cat"), i / 8)), target if i % 2 else target.copy())
        for i in range(8)
    ]
    assert reference_reward(group) == [reference_reward([edit])[0] for edit in group]
    took = []
    for _ in range(10):
        start = time.process_time()
        reference_reward(group)
        took.append((time.process_time() - start) / len(group))
    assert min(took) < 0.01  # of all threads together; 0.0015 on a current core


@pytest.mark.parametrize("size", [(48, 48), (64, 96), (128, 64)])
def test_the_distance_is_the_mean_of_its_map(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    one, other = (image_features(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(2))
    places = distance_map(one, other)
    assert places.shape == (size[0] // 8, size[1] // 8)
    assert places.mean() == pytest.approx(distance(one, other).total)
    assert not distance_map(one, one).any()


def test_the_distance_map_shows_where_an_edit_is_wrong() -> None:
    source = np.full((48, 64, 3), 120, np.uint8)
    target = source.copy()
    target[8:24, 32:48] = (220, 30, 30)
    half = target.copy()
    half[8:16, 32:48] = source[8:16, 32:48]  # the upper half of the square is missing
    score = reference_reward([Edit("", "", source, half, target)])[0]
    assert score.places is not None
    worst = np.argsort(score.places, axis=None)[:2]
    assert {tuple(map(int, np.unravel_index(place, (6, 8)))) for place in worst} == {(1, 4), (1, 5)}
    assert score.places.mean() == pytest.approx(score.parts["removed"])


def test_an_image_of_any_size_has_a_distance_map() -> None:
    for height, width in ((1, 1), (7, 30), (9, 17), (50, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        places = distance_map(image_features(pixels[0]), image_features(pixels[1]))
        assert places.shape == (-(-height // 8), -(-width // 8))
        assert np.isfinite(places).all()
