"""Metrics that compare an edit with the target, pixel by pixel or by a network's features, without a judge.

They are torchmetrics'. An edit of another size than the target is first resized to it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from earl_cli.errors import MissingExtraError, ModelError, UsageError
from earl_cli.rewards.reward import Pixels

if TYPE_CHECKING:
    from torch import Tensor

Metric: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"

DEFAULT = ("l1", "l2", "psnr", "ssim")
METRICS = (*DEFAULT, "lpips")
MOST_PSNR = 100.0
"""Decibels: of equal images, and the upper bound for others."""
_SSIM_SIDE = 6  # the window of 11 pixels needs 5 beyond each edge, mirrored without the edge itself
_LPIPS_SIDE = 31  # under it AlexNet has nothing left after its last pooling
_PACKAGES = ("torchmetrics", "torch", "torchvision", "pillow")


def available(names: Sequence[str]) -> None:
    """Raise UsageError for a name that isn't of `METRICS`, MissingExtraError for one that needs what isn't there."""
    for name in names:
        if name not in METRICS:
            raise UsageError(f"there is no metric {name!r}", hint="known are " + ", ".join(METRICS))
    if "lpips" in names and importlib.util.find_spec("torchvision") is None:
        raise MissingExtraError("the metric lpips needs the package torchvision", hint="pip install torchvision")


def measure(edited: Pixels, target: Pixels, names: Sequence[str] = DEFAULT) -> dict[str, float]:
    """The metrics ``names`` of an edit uint8[h, w, 3] against the target, all finite.

    ``l1`` and ``l2`` are the mean absolute and the mean squared difference of values from 0 to 1; ``psnr`` is
    -10 log10(l2) decibels, at most `MOST_PSNR`; ``ssim`` is the structural similarity of Wang et al. 2004 with a
    gaussian window (sigma 1.5), each colour by itself, the mean of all, in single precision, which in flat bright
    areas is good to 0.002; ``lpips`` is the perceptual distance of arXiv 1801.03924 with AlexNet, whose weights
    torchvision downloads at its first use.

    An edit of another size is resized to the target's by bicubic interpolation. For ssim and lpips images with a
    side of fewer than 6 and 31 pixels are mirrored at their edges until they have as many. Raises as `available`, and
    ModelError where the weights can't be had.
    """
    available(names)
    height, width = target.shape[:2]
    if edited.shape != target.shape:
        edited = np.asarray(Image.fromarray(edited).resize((width, height), Image.Resampling.BICUBIC))
    return {name: _METRICS[name](edited, target) for name in names}


def versions() -> dict[str, str]:
    """The versions of the packages that the metrics depend on; torchvision's only where it is installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _l1(edited: Pixels, target: Pixels) -> float:
    from torchmetrics.functional.regression import mean_absolute_error

    return float(mean_absolute_error(_tensor(edited).flatten(), _tensor(target).flatten()))


def _l2(edited: Pixels, target: Pixels) -> float:
    from torchmetrics.functional.regression import mean_squared_error

    return float(mean_squared_error(_tensor(edited).flatten(), _tensor(target).flatten()))


def _psnr(edited: Pixels, target: Pixels) -> float:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return min(MOST_PSNR, float(peak_signal_noise_ratio(_tensor(edited), _tensor(target), data_range=1.0)))


def _ssim(edited: Pixels, target: Pixels) -> float:
    from torchmetrics.functional.image import structural_similarity_index_measure

    if np.array_equal(edited, target):
        return 1.0
    images = [_tensor(_mirrored(each, _SSIM_SIDE)).float() for each in (edited, target)]
    return min(1.0, float(structural_similarity_index_measure(*images, data_range=1.0)))


def _lpips(edited: Pixels, target: Pixels) -> float:
    import torch

    images = [_tensor(_mirrored(each, _LPIPS_SIDE)).float() for each in (edited, target)]
    with torch.inference_mode():
        return float(_network()(*images))


_METRICS: Mapping[str, Callable[[Pixels, Pixels], float]] = {
    "l1": _l1,
    "l2": _l2,
    "psnr": _psnr,
    "ssim": _ssim,
    "lpips": _lpips,
}


@functools.cache
def _network() -> Metric:
    """LPIPS of images float32[1, 3, h, w] from 0 to 1, loaded once."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        network: Any = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
    except (OSError, RuntimeError) as error:  # no connection, no room, or a file that isn't what it should be
        what = f"AlexNet's weights for lpips can't be had: {error}"
        raise ModelError(what, hint="torchvision downloads them into the folder that TORCH_HOME names") from error

    def distance(edited: Tensor, target: Tensor) -> Tensor:
        value: Tensor = network(edited, target)
        network.reset()
        return value

    return distance


def _tensor(image: Pixels) -> Tensor:
    """float64[1, 3, h, w] from 0 to 1."""
    import torch

    return torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float64) / 255


def _mirrored(image: Pixels, side: int) -> Pixels:
    height, width = image.shape[:2]
    more = (0, max(0, side - height)), (0, max(0, side - width)), (0, 0)
    return np.pad(image, more, mode="symmetric")
