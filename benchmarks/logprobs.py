"""Log-probabilities of sampled tokens at Emu3's vocabulary, forward and backward: plain log-softmax against ours.

The plain way computes all 184,622 logits of every token, normalises and gathers; ours computes the rows that a sampler
chose among, 32,768 for a visual token, a chunk at a time. Each side runs in a process of its own, so that its peak
memory is its own. ``python benchmarks/logprobs.py [--tokens 2048] [--hidden 512] [--text 0] [--threads 2] [--json]``;
``--smoke`` takes the smallest size, all in this process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from earl_cli.tokens.vocabulary import EMU3
from earl_cli.training.rl.policy import token_logprobs
from earl_cli.training.sft.loss import separate_vocabularies, whole_vocabulary

SIDES = ("plain", "earl", "earl, whole head")
CHECKED = 64
"""So many tokens are compared."""
LARGEST_DIFFERENCE = 1e-4
SMOKE = {"tokens": 16, "hidden": 16, "text": 4, "rounds": 1}


def logprobs(side: str, hidden: Tensor, head: Tensor, ids: Tensor, temperature: float) -> Tensor:
    if side == "plain":
        logits = hidden @ head.T / temperature
        return logits.log_softmax(dim=-1).gather(1, ids[:, None]).squeeze(1)
    parts = (separate_vocabularies if side == "earl" else whole_vocabulary)(EMU3)
    return token_logprobs(hidden, head, ids, parts, temperature)


def expected(side: str, hidden: Tensor, head: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """What this side should have found, one token after another in float64."""
    found = []
    for state, token in zip(hidden.double(), ids.tolist(), strict=True):
        parts = separate_vocabularies(EMU3) if side == "earl" else whole_vocabulary(EMU3)
        start, stop = next(part for part in parts if part[0] <= token < part[1])
        found.append((head[start:stop].double() @ state / temperature).log_softmax(dim=0)[token - start])
    return torch.stack(found)


def run(side: str, given: argparse.Namespace) -> dict[str, float]:
    """One side, ``given.rounds`` times; the quickest counts."""
    generator = torch.Generator().manual_seed(0)
    head = (torch.randn(EMU3.size, given.hidden, generator=generator) * given.hidden**-0.5).requires_grad_()
    hidden = torch.randn(given.tokens, given.hidden, generator=generator).requires_grad_()
    ids = torch.randint(EMU3.visual_start, EMU3.size, (given.tokens,), generator=generator)
    ids[: given.text] = torch.randint(0, EMU3.text_end, (given.text,), generator=generator)
    ids = ids[torch.randperm(given.tokens, generator=generator)]
    before = _peak()
    seconds = []
    for _ in range(given.rounds):
        head.grad = hidden.grad = None
        start = time.perf_counter()
        found = logprobs(side, hidden, head, ids, given.temperature)
        found.mean().backward()
        seconds.append(time.perf_counter() - start)
    peak = _peak()
    with torch.no_grad():
        right = expected(side, hidden[:CHECKED], head, ids[:CHECKED], given.temperature)
    return {
        "seconds": min(seconds),
        "peak_gigabytes": peak,
        "added_gigabytes": peak - before,
        "difference": float((found[:CHECKED].detach() - right).abs().max()),
    }


def _run_alone(side: str) -> dict[str, float]:
    """`run` in a process of its own."""
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--side", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--text", type=int, default=0, help="how many of the tokens are text")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        torch.set_num_threads(given.threads)
        print(json.dumps(run(given.side, given)))
        return
    if given.smoke:
        vars(given).update(SMOKE)
    found = {side: run(side, given) if given.smoke else _run_alone(side) for side in SIDES}
    plain = found["plain"]
    for side, row in found.items():
        if not row["difference"] < LARGEST_DIFFERENCE:
            raise SystemExit(f"error: {side} is off by {row['difference']:.0e}")
        row["times_faster"] = plain["seconds"] / row["seconds"]
        row["times_less_memory"] = plain["added_gigabytes"] / (row["added_gigabytes"] or math.nan)
    if given.json:
        print(json.dumps({"tokens": given.tokens, "hidden": given.hidden, "text": given.text, "sides": found}))
        return
    print(f"{given.tokens} tokens, {given.text} of them text, vocabulary {EMU3.size}, hidden {given.hidden}")
    for side, row in found.items():
        print(
            f"  {side:18} {row['seconds']:7.2f} s (x {row['times_faster']:.1f})   "
            f"beyond the weights {row['added_gigabytes']:5.2f} GB (1/{row['times_less_memory']:.1f}), "
            f"in all {row['peak_gigabytes']:.2f} GB   off by {row['difference']:.0e}"
        )


if __name__ == "__main__":
    main()
