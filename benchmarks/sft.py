"""A step of supervised training at Emu3's vocabulary: the plain Trainer on whole logits against ours.

A small body under the published head of 184,622 rows, sequences of about 2,100 tokens: two 32 x 32 images and an
instruction, loss on the second. Each side trains in a process of its own, so that its peak memory is its own; both do
the whole of a step, optimizer included. ``python benchmarks/sft.py [--hidden 256] [--steps 3] [--threads 2] [--json]``;
``--smoke`` takes the smallest size, all in this process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Emu3ForCausalLM, Emu3TextConfig, Trainer, TrainerCallback, TrainingArguments

from earl_cli.config.sft import SftConfig
from earl_cli.tokens.vocabulary import EMU3
from earl_cli.training.common.stopping import StopSignal
from earl_cli.training.sft.loss import separate_vocabularies, whole_vocabulary
from earl_cli.training.sft.model import TrainedEmu3
from earl_cli.training.sft.trainer import Reporter, SftTrainer

SIDES = ("plain", "earl", "earl, separate vocabularies")
INSTRUCTION = 20
LARGEST_DIFFERENCE = 1e-3
SMOKE = {"hidden": 64, "layers": 1, "steps": 1, "grid": 2}


class Pairs(Dataset[dict[str, Any]]):
    """Random pairs of images, laid out as the published data."""

    def __init__(self, count: int, grid: int) -> None:
        generator = np.random.default_rng(0)
        self.rows = []
        for _ in range(count):
            images = []
            for _ in range(2):
                codes = EMU3.visual_start + generator.integers(0, EMU3.codes, (grid, grid))
                rows = np.concatenate([codes, np.full((grid, 1), EMU3.eol)], axis=1).ravel()
                images.append(np.concatenate([[EMU3.boi, 18, 17, 9, 18, 17, EMU3.img], rows, [EMU3.eof, EMU3.eoi]]))
            text = generator.integers(0, 1000, INSTRUCTION)
            ids = np.concatenate([[EMU3.bos], images[0], text, images[1], [EMU3.eos]])
            labels = ids.copy()
            labels[: -len(images[1]) - 1] = -100
            self.rows.append({"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Clock(TrainerCallback):
    """The moments at which steps end."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.moments.append(time.perf_counter())

    def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def run(side: str, hidden: int, layers: int, steps: int, grid: int) -> dict[str, Any]:
    """Train one side for ``steps`` steps after one that warms up."""
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=EMU3.size,
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        attention_dropout=0.0,
        pad_token_id=EMU3.pad,
        use_cache=False,
    )
    model = (Emu3ForCausalLM if side == "plain" else TrainedEmu3)(config)
    pairs = Pairs(steps + 1, grid)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=1,
            learning_rate=1e-4,
            max_grad_norm=5.0,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            seed=0,
        )
        common: dict[str, Any] = {"model": model, "args": arguments, "train_dataset": pairs, "callbacks": [clock]}
        if side == "plain":
            trainer = Trainer(**common)
        else:
            model.set_loss_ranges((whole_vocabulary if side == "earl" else separate_vocabularies)(EMU3))
            settings = SftConfig(data=(Path("random"),), output=Path(folder), precision="float32", device="cpu")
            reporter = Reporter(settings, lambda *_: None, None, None, StopSignal(), 0)
            nothing_saved: Any = None
            trainer = SftTrainer(
                **common, config=settings, base=nothing_saved, reporter=reporter, data_collator=collate
            )
        trainer.train()
    times = np.diff(clock.moments)
    tokens = len(pairs[0]["input_ids"])
    return {
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "tokens": tokens,
        "seconds_a_step": float(np.median(times)),
        "tokens_a_second": tokens / float(np.median(times)),
        "losses": clock.losses,
    }


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {**{key: torch.stack([row[key] for row in rows]) for key in rows[0]}, "ids": ["row"] * len(rows)}


def run_alone(side: str) -> dict[str, Any]:
    """`run` in a process of its own."""
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=256, help="width of the body, a multiple of 64")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--grid", type=int, default=32, help="rows and columns of codes of an image")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.smoke:
        vars(given).update(SMOKE)
    size = (given.hidden, given.layers, given.steps, given.grid)
    if given.side:
        torch.set_num_threads(given.threads)
        print(json.dumps(run(given.side, *size)))
        return
    found = {side: run(side, *size) if given.smoke else run_alone(side) for side in SIDES}
    plain = found["plain"]
    for row in found.values():
        row["memory_ratio"] = row["peak_gigabytes"] / plain["peak_gigabytes"]
        row["speed_ratio"] = row["tokens_a_second"] / plain["tokens_a_second"]
    difference = max(abs(a - b) for a, b in zip(plain["losses"], found["earl"]["losses"], strict=True))
    if not difference < LARGEST_DIFFERENCE:
        raise SystemExit(f"error: losses of plain and earl differ by {difference:.1e}")
    if given.json:
        print(json.dumps({"hidden": given.hidden, "layers": given.layers, "sides": found, "difference": difference}))
        return
    print(f"{plain['tokens']} tokens, vocabulary {EMU3.size}, hidden {given.hidden}, {given.layers} layers")
    print(f"losses of plain and earl differ by {difference:.1e} at most")
    for side, row in found.items():
        print(
            f"  {side:28} {row['seconds_a_step']:7.2f} s a step {row['tokens_a_second']:8.0f} tokens/s "
            f"(x {row['speed_ratio']:.2f})   peak {row['peak_gigabytes']:5.2f} GB (x {row['memory_ratio']:.2f})"
        )


if __name__ == "__main__":
    main()
