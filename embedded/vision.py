"""Train the embedded vision tokenizer: a small ``Emu3VQVAE`` whose codebook is a fixed grid.

That is finite scalar quantization (Mentzer et al., arXiv 2309.15505). ``python embedded/vision.py WORK [STEPS]`` reads
WORK/pairs/train, writes WORK/vision, and resumes from WORK/vision.pt.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from earl_cli.models.vision import decode_latents, latents

LEVELS, DIMENSIONS = 8, 4
BATCH = 8
WARM_UP = 100
PEAK = 1.2e-3
ROUGH_SHARE = 0.9  # of the steps in bfloat16 (twice as fast where the processor has it), the rest in float32


def new_model() -> Emu3VQVAE:
    """Random weights, near-silent residual branches, and the grid {-1, …, 1}^4 as the codebook."""
    torch.manual_seed(0)
    model = Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=LEVELS**DIMENSIONS,
            embed_dim=DIMENSIONS,
            latent_channels=DIMENSIONS,
            base_channels=32,
            channel_multiplier=[1, 2, 2, 4],
            num_res_blocks=1,
            attn_resolutions=[3],
            hidden_size=128,
            num_attention_heads=1,
            attention_dropout=0.0,
            temporal_downsample_factor=1,
            double_latent=False,
        )
    )
    axis = torch.linspace(-1, 1, LEVELS)
    grid = torch.tensor(list(itertools.product(axis.tolist(), repeat=DIMENSIONS)))
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(grid)
        for name, parameter in model.named_parameters():
            if name.endswith("conv2.weight"):
                parameter.mul_(0.05)
            elif name.endswith(("conv_y.weight", "conv_b.weight")):
                parameter.zero_()
            elif name.endswith("conv_y.bias"):
                parameter.fill_(1.0)
            elif name.endswith("conv_b.bias"):
                parameter.zero_()
    model.quantize.embedding.weight.requires_grad_(False)
    return model


def to_grid(latent: Tensor) -> Tensor:
    """The nearest point of the grid, with the gradient passed straight through."""
    nearest = ((latent.clamp(-1, 1) + 1) / 2 * (LEVELS - 1)).round() / (LEVELS - 1) * 2 - 1
    return latent + (nearest - latent).detach()


def loss_of(pixels: Tensor, generated: Tensor, latent: Tensor) -> Tensor:
    """L1 + 0.5 MSE + 0.3 L1 of the gradients + 0.1 pull towards the grid."""
    error = generated - pixels
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    pull = (latent - to_grid(latent).detach()).square().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.3 * edges + 0.1 * pull


def images(folder: Path) -> dict[tuple[int, int], np.ndarray]:
    """All sources and edits by size, as ``uint8[N, H, W, 3]``."""
    by_size: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    for path in sorted(folder.rglob("*.png")):
        pixels = np.asarray(Image.open(path))
        by_size[pixels.shape[:2]].append(pixels)
    return {size: np.stack(items) for size, items in by_size.items() if len(items) >= BATCH}


def batch_of(pool: dict[tuple[int, int], np.ndarray], step: int, weights: np.ndarray) -> Tensor:
    """The batch of a step: one size, mirrored at random; a function of the step alone, so that resuming is exact."""
    rng = np.random.default_rng((7, step))
    items = list(pool.values())[rng.choice(len(pool), p=weights)]
    chosen = items[rng.integers(len(items), size=BATCH)]
    chosen = chosen[:, :, ::-1] if rng.random() < 0.5 else chosen
    return torch.from_numpy(np.ascontiguousarray(chosen)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def psnr(model: Emu3VQVAE, pool: dict[tuple[int, int], np.ndarray]) -> float:
    """Mean PSNR in dB over images (the first 64 of each size), through the grid and back."""
    values = []
    for items in pool.values():
        pixels = torch.from_numpy(items[:64]).permute(0, 3, 1, 2).float() / 127.5 - 1
        generated = decode_latents(model, to_grid(latents(model, pixels))).clamp(-1, 1)
        values += (-10 * torch.log10(((generated - pixels) / 2).square().mean((1, 2, 3)))).tolist()
    return float(np.mean(values))


@dataclass(frozen=True)
class Schedule:
    """So many steps: the rate rises to ``peak`` over ``warm_up`` of them, then falls along a cosine to 2 % of it."""

    steps: int
    warm_up: int
    peak: float

    def rate(self, step: int) -> float:
        progress = max(0.0, step - self.warm_up) / (self.steps - self.warm_up)
        return (
            self.peak * min(1.0, (step + 1) / self.warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        )


def fit(
    model: Emu3VQVAE,
    batch: Callable[[int], Tensor],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    quality: Callable[[], float],
    state: Path,
    schedule: Schedule,
    save_every: int = 200,
) -> None:
    """Train ``model`` on the ``batch`` of each step, going on from the file ``state`` where it is there.

    ``loss`` takes pixels, their reconstruction, and latents; ``quality`` is a PSNR in dB, printed at every save.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=schedule.peak, weight_decay=0)
    start = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    began = time.monotonic()
    for step in range(start, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        pixels = batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=step < ROUGH_SHARE * schedule.steps):
            latent = latents(model, pixels).float()
            generated = decode_latents(model, to_grid(latent)).float()
        found = loss(pixels, generated, latent)
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            seconds = (time.monotonic() - began) / (step + 1 - start)
            row = {"step": step + 1, "loss": round(found.item(), 4), "s_per_step": round(seconds, 3)}
            print(json.dumps(row), flush=True)
        if (step + 1) % save_every == 0 or step + 1 == schedule.steps:
            aside = state.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, aside)
            aside.rename(state)
            print(json.dumps({"step": step + 1, "heldout_psnr": round(quality(), 2)}), flush=True)


def train(work: Path, steps: int) -> None:
    torch.set_num_threads(2)
    pool, held_out = images(work / "pairs/train"), images(work / "pairs/heldout")
    counts = np.array([len(items) for items in pool.values()], dtype=float)
    weights = counts / counts.sum()
    model, state = new_model(), work / "vision.pt"
    if not state.exists():
        with torch.no_grad():
            scale = 0.5 / latents(model, batch_of(pool, 0, weights)).std()
            model.quant_conv.conv.weight.mul_(scale)
            model.quant_conv.conv.bias.mul_(scale)
    schedule = Schedule(steps, WARM_UP, PEAK)
    fit(model, lambda step: batch_of(pool, step, weights), loss_of, lambda: psnr(model, held_out), state, schedule)
    model.half().save_pretrained(work / "vision")


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3000)
