"""From any of Pillow's pixel modes to 8-bit RGB with or without alpha, in sRGB or in the colours of an RGB profile.

Colours are never mixed with what lies behind them: alpha is split off first, and comes back at the end.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from earl_cli.images.spaces import ColorSpace, to_srgb

# The colour space an ICC profile names in its header (bytes 16 to 20), and the modes whose pixels it can describe.
PROFILE_MODES = {b"CMYK": ("CMYK",), b"GRAY": ("L",), b"Lab ": ("LAB",)}
LARGEST_PROFILE = 1 << 20  # what other programs take in a PNG
OPAQUE_IF_ALL_HIDDEN = ("BMP", "DIB", "ICO")  # many programs leave the fourth byte empty there


def to_pixels(
    image: Image.Image, icc: bytes | None, space: ColorSpace | None = None
) -> tuple[Image.Image, bytes | None, tuple[str, ...]]:
    """(RGB, or RGBA where something is transparent; the profile that describes it; notes).

    ``icc`` or else ``space`` is what the colours mean. Where nothing is to be seen, colours are those beside it.
    """
    notes: list[str] = []
    colors, alpha = _split(image)
    if alpha is not None and alpha.getextrema() == (0, 0):
        if image.format in OPAQUE_IF_ALL_HIDDEN:
            alpha = None
        else:
            notes.append("every pixel is transparent")
    if alpha is not None and alpha.getextrema() == (255, 255):
        alpha = None
    if colors.mode in ("I", "F") or colors.mode.startswith("I;"):
        colors, said = _eight_bits(colors)
        notes.append(said)
    if colors.mode in ("1", "RGBX"):
        colors = colors.convert("L" if colors.mode == "1" else "RGB")
    kind = icc[16:20] if icc else None
    if kind in PROFILE_MODES or colors.mode == "LAB":
        colors, said = _through_profile(colors, icc)
        notes.append(said)
        icc = None
    elif colors.mode == "CMYK":
        notes.append("CMYK without a profile: colours are approximate")
        icc = None
    elif icc and not (kind == b"RGB " and _is_whole(icc)):
        notes.append("the colour profile is damaged: colours are taken as sRGB")
        icc = None
    colors = colors.convert("RGB")
    if icc and len(icc) > LARGEST_PROFILE:
        colors, said = _through_profile(colors, icc)
        icc = None
        notes.append(said)
    if space and not icc:
        colors = to_srgb(colors, space)
        clipped = ", highlights are cut off" if space.name.startswith("HDR") else ""
        notes.append(f"{space.name} converted to sRGB{clipped}")
    if alpha is not None:
        colors = filled(colors, alpha)
        colors.putalpha(alpha)
    return colors, icc, tuple(note for note in notes if note)


def _is_whole(icc: bytes) -> bool:
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except (ImageCms.PyCMSError, OSError):
        return False
    return int.from_bytes(icc[:4]) <= len(icc)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(the colours alone, in their own mode where that can be; alpha in mode "L", or None)."""
    if not image.has_transparency_data:
        return image, None
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        hidden = np.asarray(image) == transparent
        return image, Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8))
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # of 16 bits, as the colours
    if image.mode in ("LA", "La", "L"):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    image = image.convert("RGBA")
    return image.convert("RGB"), image.getchannel("A")


def filled(colors: Image.Image, alpha: Image.Image) -> Image.Image:
    """An RGB picture in which pixels that can't be seen have the colours of those around that can.

    What was stored there is arbitrary, often black, and would show wherever a picture is blurred or made smaller.
    """
    seen = alpha.point(lambda value: 255 * (value > 0))
    level = colors.copy()
    level.putalpha(seen)
    levels = [level]
    while level.getchannel("A").getextrema()[0] == 0 and max(level.size) > 1:
        level = level.convert("RGBa").reduce(2).convert("RGBA")
        level.putalpha(level.getchannel("A").point(lambda value: 255 * (value > 0)))
        levels.append(level)
    whole = on_white(levels.pop())
    for level in reversed(levels):
        below = whole.resize(level.size, Image.Resampling.BILINEAR)
        below.paste(level.convert("RGB"), mask=level.getchannel("A"))
        whole = below
    return whole


def on_white(image: Image.Image) -> Image.Image:
    """A picture in RGB as it looks on a white page."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image)
    return flat


def _through_profile(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """``image`` in sRGB by way of its own profile; plain conversion where the profile is broken or of another kind."""
    kind = "" if image.mode in ("L", "RGB") else f"{image.mode} "
    try:
        if icc is None or icc[16:20] == b"Lab " or image.mode == "LAB":
            own = ImageCms.createProfile("LAB")
        elif image.mode not in PROFILE_MODES.get(icc[16:20], ("RGB",)):
            return image.convert("RGB"), "the colour profile is of another kind of picture: colours are taken as sRGB"
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


def _eight_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """An 8-bit grayscale of integers or floats with more range; what can't be a known range is stretched to fit."""
    values: NDArray[np.floating] = np.asarray(image).astype(np.float32)
    values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and 255 < high <= 65535)
    said = "16-bit grayscale read with 8 bits" if sixteen else f"values from {low:g} to {high:g} read with 8 bits"
    if low < 0 or high > 65535:
        values = (values / 2 - low / 2) / max(high / 2 - low / 2, 1e-30) * 255
        said += ", stretched to black and white"
    elif sixteen or high > 255:
        values = values / 257
    elif image.mode == "F" and high <= 1:
        values = values * 255
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8)), said
