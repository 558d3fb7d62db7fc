"""From any of Pillow's pixel modes to 8-bit RGB or RGBA, in sRGB or in the colour space of an RGB profile.

Colours are converted without premultiplication: alpha is split off first, and put back at the end.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Values = NDArray[np.float64]

SRGB_XY = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # of white, red, green, blue
PRIMARIES = {  # by ITU-T H.273, table 2
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
WHITE_NITS = 203  # diffuse white in an HDR image (ITU-R BT.2408)
# By the colour space in an ICC profile's header (bytes 16 to 20): the modes whose pixels it describes.
PROFILE_MODES = {b"CMYK": ("CMYK",), b"GRAY": ("L",), b"Lab ": ("LAB",)}
MAX_PROFILE_BYTES = 1 << 20  # what other programs accept in a PNG
OPAQUE_IF_ALL_HIDDEN = ("BMP", "DIB", "ICO")  # many programs leave their fourth byte 0


@dataclass(frozen=True, eq=False)
class ColorSpace:
    """An RGB colour space: ``to_linear`` is its transfer function, of values from 0 to 1; ``xy`` as `SRGB_XY`."""

    name: str
    to_linear: Callable[[Values], Values]
    xy: tuple[float, ...] = SRGB_XY


def gamma_color_space(gamma: float, xy: tuple[float, ...] | None) -> ColorSpace | None:
    """The colour space of a PNG's gAMA and cHRM; None where they mean sRGB, or are invalid."""
    is_srgb_gamma = abs(gamma - 1 / 2.2) < 0.01
    is_srgb_xy = xy is None or min(xy[1::2]) <= 0 or np.allclose(xy, SRGB_XY, atol=0.002)
    if gamma <= 0 or (is_srgb_gamma and is_srgb_xy):
        return None
    to_linear = _srgb_to_linear if is_srgb_gamma else lambda values: values ** (1 / gamma)
    return ColorSpace(f"gamma {1 / gamma:.3g}", to_linear, SRGB_XY if is_srgb_xy or xy is None else xy)


def coded_color_space(primaries: int, transfer: int) -> ColorSpace | None:
    """The colour space of these code points of ITU-T H.273, as in cICP and nclx; None for sRGB and unknown ones."""
    name, to_linear = TRANSFERS.get(transfer, ("", _srgb_to_linear))
    xy = PRIMARIES.get(primaries, SRGB_XY)
    if not name and xy == SRGB_XY:
        return None
    gamut = {9: "BT.2020", 11: "DCI P3", 12: "Display P3"}.get(primaries, "coded")
    return ColorSpace(name or gamut, to_linear, xy)


def _srgb_to_linear(values: Values) -> Values:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _pq_to_linear(values: Values) -> Values:
    """SMPTE ST 2084, relative to diffuse white."""
    root = values ** (32 / 2523)
    low = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
    return 10_000 / WHITE_NITS * low ** (16384 / 2610)


def _hlg_to_linear(values: Values) -> Values:
    """ARIB STD-B67 on a display of 1000 nits, with the system gamma applied to each channel."""
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return 1000 / WHITE_NITS * scene**1.2


# By ITU-T H.273, table 3; the others are sRGB, or displayed as such.
TRANSFERS: dict[int, tuple[str, Callable[[Values], Values]]] = {
    4: ("gamma 2.2", lambda values: values**2.2),
    5: ("gamma 2.8", lambda values: values**2.8),
    8: ("linear light", lambda values: values),
    16: ("HDR (PQ)", _pq_to_linear),
    18: ("HDR (HLG)", _hlg_to_linear),
}


def to_srgb(image: Image.Image, space: ColorSpace) -> Image.Image:
    """An RGB image of that space in sRGB; white stays white, what is brighter is clipped to white."""
    linear = space.to_linear(np.arange(256) / 255)
    if space.xy == SRGB_XY:
        table = np.round(_linear_to_srgb(linear) * 255).astype(np.uint8)
        return image.point([*table.tolist()] * 3)
    matrix = _matrix_to_srgb(space.xy).astype(np.float32)
    linear = linear.astype(np.float32)
    codes = np.round(_linear_to_srgb(np.arange(4097) / 4096) * 255).astype(np.uint8)  # dark colours need finer steps
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, 256):
        box = (0, top, image.width, min(image.height, top + 256))
        rows = linear[np.asarray(image.crop(box))] @ matrix.T
        result.paste(Image.fromarray(codes[(np.clip(rows, 0, 1) * 4096 + 0.5).astype(np.int32)]), box)
    return result


def _linear_to_srgb(light: Values) -> Values:
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _matrix_to_srgb(xy: tuple[float, ...]) -> Values:
    """Linear RGB of these primaries to linear sRGB, with Bradford adaptation of the white point."""
    own, srgb = _matrix_to_xyz(xy), _matrix_to_xyz(SRGB_XY)
    cones = BRADFORD @ own.sum(1), BRADFORD @ srgb.sum(1)
    adaptation = np.linalg.inv(BRADFORD) @ np.diag(cones[1] / cones[0]) @ BRADFORD
    matrix: Values = np.linalg.inv(srgb) @ adaptation @ own
    return matrix


def _matrix_to_xyz(xy: tuple[float, ...]) -> Values:
    white, *corners = (np.array((x / y, 1, (1 - x - y) / y)) for x, y in zip(xy[::2], xy[1::2], strict=True))
    matrix = np.stack(corners, axis=1)
    scaled: Values = matrix * np.linalg.solve(matrix, white)
    return scaled


def to_pixels(
    image: Image.Image, icc: bytes | None, space: ColorSpace | None = None
) -> tuple[Image.Image, bytes | None, tuple[str, ...]]:
    """(RGB, or RGBA if anything is transparent; its profile, if it isn't sRGB; notes).

    ``icc``, or else ``space``, is the colour space of ``image``. Invisible pixels get the colours of their neighbours.
    """
    notes: list[str] = []
    colors, alpha = _split_alpha(image)
    if alpha is not None and alpha.getextrema() == (0, 0):
        if image.format in OPAQUE_IF_ALL_HIDDEN:
            alpha = None
        else:
            notes.append("every pixel is transparent")
    if alpha is not None and alpha.getextrema() == (255, 255):
        alpha = None
    if colors.mode in ("I", "F") or colors.mode.startswith("I;"):
        colors, note = _to_eight_bits(colors)
        notes.append(note)
    if colors.mode in ("1", "RGBX"):
        colors = colors.convert("L" if colors.mode == "1" else "RGB")
    kind = icc[16:20] if icc else None
    if kind in PROFILE_MODES or colors.mode == "LAB":
        colors, note = _convert_by_profile(colors, icc)
        notes.append(note)
        icc = None
    elif colors.mode == "CMYK":
        notes.append("CMYK without a profile: colours are approximate")
        icc = None
    elif icc and not (kind == b"RGB " and _is_valid_profile(icc)):
        notes.append("the colour profile is damaged: colours are taken as sRGB")
        icc = None
    colors = colors.convert("RGB")
    if icc and len(icc) > MAX_PROFILE_BYTES:
        colors, note = _convert_by_profile(colors, icc)
        icc = None
        notes.append(note)
    if space and not icc:
        colors = to_srgb(colors, space)
        clipped = ", highlights are clipped" if space.name.startswith("HDR") else ""
        notes.append(f"{space.name} converted to sRGB{clipped}")
    if alpha is not None:
        colors = fill_transparent(colors, alpha)
        colors.putalpha(alpha)
    return colors, icc, tuple(note for note in notes if note)


def _is_valid_profile(icc: bytes) -> bool:
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except (ImageCms.PyCMSError, OSError):
        return False
    return int.from_bytes(icc[:4]) <= len(icc)


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(the colours without alpha, in the image's own mode if possible; alpha in mode "L", or None)."""
    if not image.has_transparency_data:
        return image, None
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        hidden = np.asarray(image) == transparent
        return image, Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8))
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # of 16 bits, as the colours were
    if image.mode in ("LA", "La", "L"):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    image = image.convert("RGBA")
    return image.convert("RGB"), image.getchannel("A")


def fill_transparent(colors: Image.Image, alpha: Image.Image) -> Image.Image:
    """An RGB image whose invisible pixels have the colours of the visible ones around them.

    What a file stores there is arbitrary, often black, and would show once the image is blurred or reduced.
    """
    visible = alpha.point(lambda value: 255 * (value > 0))
    level = colors.copy()
    level.putalpha(visible)
    levels = [level]
    while level.getchannel("A").getextrema()[0] == 0 and max(level.size) > 1:
        level = level.convert("RGBa").reduce(2).convert("RGBA")
        level.putalpha(level.getchannel("A").point(lambda value: 255 * (value > 0)))
        levels.append(level)
    result = on_white(levels.pop())
    for level in reversed(levels):
        enlarged = result.resize(level.size, Image.Resampling.BILINEAR)
        enlarged.paste(level.convert("RGB"), mask=level.getchannel("A"))
        result = enlarged
    return result


def on_white(image: Image.Image) -> Image.Image:
    """An image in RGB, on a white background."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image)
    return flat


def _convert_by_profile(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """``image`` in sRGB by its profile, or by Pillow if the profile is broken or of another kind; and a note."""
    kind = "" if image.mode in ("L", "RGB") else f"{image.mode} "
    try:
        if icc is None or icc[16:20] == b"Lab " or image.mode == "LAB":
            own = ImageCms.createProfile("LAB")
        elif image.mode not in PROFILE_MODES.get(icc[16:20], ("RGB",)):
            return image.convert("RGB"), "the colour profile is of another kind of image: colours are taken as sRGB"
        else:
            own = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(own),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB"), f"the embedded {kind}profile is broken: colours are approximate"
    assert converted is not None
    if image.mode == "RGB":
        return converted, "the colour profile is large: colours are converted to sRGB by it"
    return converted, f"{image.mode} converted to sRGB by its profile" if image.mode != "L" else ""


def _to_eight_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """An 8-bit grayscale of integers or floats with more range, and a note; an unknown range is stretched to fit."""
    values: NDArray[np.floating] = np.asarray(image).astype(np.float32)
    values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and 255 < high <= 65535)
    note = "16-bit grayscale read with 8 bits" if sixteen else f"values from {low:g} to {high:g} read with 8 bits"
    if low < 0 or high > 65535:
        values = (values / 2 - low / 2) / max(high / 2 - low / 2, 1e-30) * 255
        note += ", stretched to black and white"
    elif sixteen or high > 255:
        values = values / 257
    elif image.mode == "F" and high <= 1:
        values = values * 255
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8)), note
