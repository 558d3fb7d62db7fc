"""Encoding and decoding a still image: our single frame against transformers' own `Emu3VQVAE`, on one thread.

``--full`` takes the published config of 270.7 M parameters, otherwise a quarter of its width. Codes and pixels of both
sides are compared before anything is measured. `python benchmarks/vision.py [--full] [--size 64 128] [--json]`;
``--smoke`` takes the smallest size.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from earl_cli.models import vision

SMALL = {"base_channels": 64, "hidden_size": 256}
SMALLEST = {"base_channels": 32, "hidden_size": 128, "num_res_blocks": 1}
LARGEST_DIFFERENCE = 1e-3


def best_seconds(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The fastest of ``rounds`` alternating runs of each side."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


@torch.no_grad()
def measure(model: Emu3VQVAE, size: int, rounds: int) -> dict[str, Any]:
    """Seconds and ratios for one image of ``size`` x ``size`` pixels."""
    pixels = torch.rand(1, 3, size, size) * 2 - 1
    codes = vision.encode(model, pixels)
    sizes = torch.tensor([[size, size]])
    same_codes = torch.equal(torch.stack(model.encode(pixels, sizes).image_tokens), codes)
    difference = (model.decode(codes) - vision.decode(model, codes)).abs().max().item()
    if not same_codes or not difference < LARGEST_DIFFERENCE:
        raise SystemExit(f"error: {size} pixels: codes equal: {same_codes}, pixels differ by up to {difference}")
    encode = best_seconds(
        {"earl": lambda: vision.encode(model, pixels), "transformers": lambda: model.encode(pixels, sizes)}, rounds
    )
    decode = best_seconds(
        {"earl": lambda: vision.decode(model, codes), "transformers": lambda: model.decode(codes)}, rounds
    )
    return {
        "size": size,
        "same_codes": same_codes,
        "largest_pixel_difference": difference,
        "encode_seconds": {name: round(seconds, 4) for name, seconds in encode.items()},
        "encode_ratio": round(encode["transformers"] / encode["earl"], 2),
        "decode_seconds": {name: round(seconds, 4) for name, seconds in decode.items()},
        "decode_ratio": round(decode["transformers"] / decode["earl"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the published 270.7 M-parameter config")
    parser.add_argument("--size", type=int, nargs="+", default=[64], help="sides of the pictures in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        vars(given).update(size=[16], rounds=1)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = Emu3VQVAE(Emu3VQVAEConfig(**({} if given.full else SMALLEST if given.smoke else SMALL))).eval()
    parameters = sum(weight.numel() for weight in model.parameters())
    results = [measure(model, size, given.rounds) for size in given.size]
    if given.json:
        print(json.dumps({"parameters": parameters, "threads": given.threads, "results": results}))
        return
    print(f"{parameters / 1e6:.1f} M parameters, one picture, {given.threads} thread(s)")
    for result in results:
        print(f"{result['size']} x {result['size']} pixels: codes equal: {result['same_codes']}, ", end="")
        print(f"largest difference of a pixel: {result['largest_pixel_difference']}")
        for work in ("encode", "decode"):
            seconds = result[f"{work}_seconds"]
            print(
                f"  {work}   transformers {seconds['transformers']:8.3f} s   earl {seconds['earl']:8.3f} s"
                f"   ratio {result[f'{work}_ratio']:5.2f}"
            )


if __name__ == "__main__":
    main()
