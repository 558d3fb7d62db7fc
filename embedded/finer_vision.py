"""Train the embedded vision tokenizer on at the size of 192 x 192 pixels, on crops with fine structure.

``python embedded/finer_vision.py WORK [STEPS]`` starts from the shipped tokenizer, reads WORK/photos, writes WORK/finer
and goes on from WORK/finer/vision.pt. A batch is a function of its step alone, so that going on is exact.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from edits import Pixels, to_bytes
from PIL import Image
from textures import any_texture
from torch import Tensor
from transformers import Emu3VQVAE
from vision import Schedule, fit, to_grid

from earl_cli.models.vision import decode_latents, latents

SIDE, BATCH = 128, 8
AREAS = (144 * 144, 256 * 256)  # a photo's area when the model sees it
WARM_UP, PEAK = 200, 5e-4
SHIPPED = Path(__file__).parents[1] / "earl_cli" / "models" / "embedded" / "vision"


@cache
def photographs(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


def textured(photo: Image.Image, rng: np.random.Generator) -> Pixels:
    """A photo at a random size of those that the model sees, with something fine on it, as a crop of `SIDE` pixels.

    What is put on is made at twice the size and averaged, as it is when a photo is made smaller.
    """
    area = np.exp(rng.uniform(*np.log(AREAS)))
    scale = 2 * max(math.sqrt(area / (photo.width * photo.height)), (SIDE + 1) / min(photo.size))
    size = round(photo.width * scale), round(photo.height * scale)
    left, top = rng.integers(size[0] - 2 * SIDE + 1), rng.integers(size[1] - 2 * SIDE + 1)
    right, bottom = (left + 2 * SIDE) / scale, (top + 2 * SIDE) / scale
    box = (left / scale, top / scale, min(right, photo.width), min(bottom, photo.height))
    crop = photo.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(crop, dtype=np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    image = Image.fromarray(to_bytes(any_texture(np.ascontiguousarray(pixels), rng)))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def batch_of(folder: Path, seed: int, step: int, count: int = BATCH) -> Tensor:
    rng = np.random.default_rng((seed, step))
    photos = photographs(folder)
    items = [textured(photos[rng.integers(len(photos))], rng) for _ in range(count)]
    return torch.from_numpy(np.stack(items)).permute(0, 3, 1, 2) * 2 - 1


def loss_of(pixels: Tensor, generated: Tensor, latent: Tensor) -> Tensor:
    """L1 + 0.5 MSE + 0.6 L1 of the gradients + 0.3 of those at half the size + 0.1 pull towards the grid."""
    error = generated - pixels
    half = torch.nn.functional.avg_pool2d(error, 2)

    def edges(values: Tensor) -> Tensor:
        down, across = values[..., 1:, :] - values[..., :-1, :], values[..., 1:] - values[..., :-1]
        return down.abs().mean() + across.abs().mean()

    pull = (latent - to_grid(latent).detach()).square().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.6 * edges(error) + 0.3 * edges(half) + 0.1 * pull


@torch.no_grad()
def psnr(model: Emu3VQVAE, folder: Path) -> float:
    """Mean PSNR in dB over 64 textured crops of held-out photos, through the grid and back."""
    pixels = batch_of(folder, 11, 0, 64)
    generated = torch.cat(
        [decode_latents(model, to_grid(latents(model, part))).clamp(-1, 1) for part in pixels.split(8)]
    )
    return float((-10 * torch.log10(((generated - pixels) / 2).square().mean((1, 2, 3)))).mean())


def train(work: Path, steps: int) -> None:
    torch.set_num_threads(2)
    photos, held_out, folder = work / "photos/train", work / "photos/heldout", work / "finer"
    folder.mkdir(exist_ok=True)
    model = Emu3VQVAE.from_pretrained(SHIPPED, dtype=torch.float32).train()
    model.quantize.embedding.weight.requires_grad_(False)
    schedule = Schedule(steps, WARM_UP, PEAK)
    fit(
        model,
        lambda step: batch_of(photos, 7, step),
        loss_of,
        lambda: psnr(model, held_out),
        folder / "vision.pt",
        schedule,
    )
    model.half().save_pretrained(folder / "vision")


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4000)
