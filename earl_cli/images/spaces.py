"""What a picture's numbers mean as light, where no profile says it, and the same picture in sRGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
WHITE_NITS = 203  # a white page in an HDR picture (ITU-R BT.2408)


@dataclass(frozen=True, eq=False)
class ColorSpace:
    """What an RGB picture's numbers mean: ``light`` takes them, 0 to 1, to light; ``xy`` as :data:`SRGB_XY`."""

    name: str
    light: Callable[[Values], Values]
    xy: tuple[float, ...] = SRGB_XY


def gamma_space(gamma: float, xy: tuple[float, ...] | None) -> ColorSpace | None:
    """A PNG's gAMA and cHRM; None where they mean sRGB, or nothing."""
    usual = abs(gamma - 1 / 2.2) < 0.01
    near = xy is None or min(xy[1::2]) <= 0 or np.allclose(xy, SRGB_XY, atol=0.002)
    if gamma <= 0 or (usual and near):
        return None
    light = _srgb_light if usual else lambda values: values ** (1 / gamma)
    return ColorSpace(f"gamma {1 / gamma:.3g}", light, SRGB_XY if near or xy is None else xy)


def coded_space(primaries: int, transfer: int) -> ColorSpace | None:
    """Colours by the code points of ITU-T H.273, as in cICP and nclx; None where they mean sRGB or aren't known."""
    name, light = TRANSFERS.get(transfer, ("", _srgb_light))
    xy = PRIMARIES.get(primaries, SRGB_XY)
    if not name and xy == SRGB_XY:
        return None
    wide = {9: "BT.2020", 11: "DCI P3", 12: "Display P3"}.get(primaries, "coded")
    return ColorSpace(name or wide, light, xy)


def _srgb_light(values: Values) -> Values:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _pq_light(values: Values) -> Values:
    """SMPTE ST 2084, relative to white."""
    root = values ** (32 / 2523)
    low = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
    return 10_000 / WHITE_NITS * low ** (16384 / 2610)


def _hlg_light(values: Values) -> Values:
    """ARIB STD-B67 on a display of 1000 nits, its system gamma taken channel by channel."""
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return 1000 / WHITE_NITS * scene**1.2


# By ITU-T H.273, table 3; the rest is sRGB, or is shown as if it were.
TRANSFERS: dict[int, tuple[str, Callable[[Values], Values]]] = {
    4: ("gamma 2.2", lambda values: values**2.2),
    5: ("gamma 2.8", lambda values: values**2.8),
    8: ("linear light", lambda values: values),
    16: ("HDR (PQ)", _pq_light),
    18: ("HDR (HLG)", _hlg_light),
}


def to_srgb(image: Image.Image, space: ColorSpace) -> Image.Image:
    """An RGB picture of that space in sRGB; white stays white, and what is brighter than white becomes white."""
    light = space.light(np.arange(256) / 255)
    if space.xy == SRGB_XY:
        table = np.round(_srgb_code(light) * 255).astype(np.uint8)
        return image.point([*table.tolist()] * 3)
    matrix = _adapted(space.xy).astype(np.float32)
    lights = light.astype(np.float32)
    codes = np.round(_srgb_code(np.arange(4097) / 4096) * 255).astype(np.uint8)  # dark steps are below one of 255
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, 256):
        box = (0, top, image.width, min(image.height, top + 256))
        rows = lights[np.asarray(image.crop(box))] @ matrix.T
        result.paste(Image.fromarray(codes[(np.clip(rows, 0, 1) * 4096 + 0.5).astype(np.int32)]), box)
    return result


def _srgb_code(light: Values) -> Values:
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _adapted(xy: tuple[float, ...]) -> Values:
    """Light in these primaries to light in those of sRGB, whites on each other (Bradford)."""
    own, srgb = _to_xyz(xy), _to_xyz(SRGB_XY)
    cones = BRADFORD @ own.sum(1), BRADFORD @ srgb.sum(1)
    adaptation = np.linalg.inv(BRADFORD) @ np.diag(cones[1] / cones[0]) @ BRADFORD
    matrix: Values = np.linalg.inv(srgb) @ adaptation @ own
    return matrix


def _to_xyz(xy: tuple[float, ...]) -> Values:
    white, *corners = (np.array((x / y, 1, (1 - x - y) / y)) for x, y in zip(xy[::2], xy[1::2], strict=True))
    matrix = np.stack(corners, axis=1)
    scaled: Values = matrix * np.linalg.solve(matrix, white)
    return scaled
