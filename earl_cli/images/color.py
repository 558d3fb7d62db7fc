"""From any of Pillow's pixel modes to 8-bit RGB and alpha, through an embedded profile where the colours need one."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# The colour space an ICC profile names in its header (bytes 16 to 20), and the modes whose pixels it can describe.
PROFILE_MODES = {b"CMYK": ("CMYK",), b"GRAY": ("L",), b"Lab ": ("LAB",)}


def to_rgb_and_alpha(
    image: Image.Image, icc: bytes | None
) -> tuple[Image.Image, Image.Image | None, bytes | None, tuple[str, ...]]:
    """(rgb flattened onto white, alpha or None where all is opaque, the profile that describes rgb, notes)."""
    notes: list[str] = []
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image, said = _eight_bits(image)
        notes.append(said)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB") if alpha.getextrema() == (255, 255) else _on_white(image, alpha)
        alpha = None if alpha.getextrema() == (255, 255) else alpha
    if image.mode in ("1", "RGBX"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    space = icc[16:20] if icc else None
    if space in PROFILE_MODES or image.mode == "LAB":
        image, said = _through_profile(image, icc)
        notes.append(said)
        icc = None
    elif image.mode == "CMYK":
        notes.append("CMYK without a profile: colours are approximate")
        icc = None
    return image.convert("RGB"), alpha, icc if space == b"RGB " else None, tuple(note for note in notes if note)


def _on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image.convert("RGB"), mask=alpha)
    return flat


def _through_profile(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """``image`` in sRGB by way of its own profile; plain conversion where the profile is broken or of another kind."""
    try:
        if icc is None or icc[16:20] == b"Lab " or image.mode == "LAB":
            own = ImageCms.createProfile("LAB")
        elif image.mode not in PROFILE_MODES[icc[16:20]]:
            return image.convert("RGB"), ""
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
        return image.convert("RGB"), f"the embedded {image.mode} profile is broken: colours are approximate"
    assert converted is not None
    return converted, f"{image.mode} converted to sRGB by its profile" if image.mode != "L" else ""


def _eight_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """An 8-bit grayscale of integers or floats with more range; what can't be a known range is stretched to fit."""
    values: NDArray[np.floating] = np.asarray(image).astype(np.float32)
    values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and 255 < high <= 65535)
    said = "16-bit grayscale edited with 8 bits" if sixteen else f"values from {low:g} to {high:g} edited with 8 bits"
    if low < 0 or high > 65535:
        values = (values / 2 - low / 2) / max(high / 2 - low / 2, 1e-30) * 255
        said += ", stretched to black and white"
    elif sixteen or high > 255:
        values = values / 257
    elif image.mode == "F" and high <= 1:
        values = values * 255
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8)), said
