"""Both engines on the embedded model: images a second at 1, 8 and 32 prompts at once.

`python benchmarks/engines.py [--prompts 1 8 32] [--rounds 3] [--threads 1] [--json]`, in an environment with vLLM; on a
GPU `--large` takes a model of 8 B's shape with random weights and 64 x 64 codes instead. `--smoke` takes the smallest
size. Before anything is measured, the embedded model's likeliest ids by both engines are compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.models.emu3.configuration_emu3 import Emu3TextConfig
from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM

from earl_cli.config.sampling import SamplingParams
from earl_cli.errors import explain
from earl_cli.generation.engine import Engine, SamplingRequest
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.generation.vllm.engine import VllmEngine
from earl_cli.models import names
from earl_cli.models.bundle import load_model
from earl_cli.models.weights import write_json
from earl_cli.tokens.layout import Grid, SequenceLayout
from earl_cli.tokens.vocabulary import EMU3

INSTRUCTION = "make it snowy"


def requests(layout: SequenceLayout, count: int, grid: Grid) -> list[SamplingRequest]:
    """Different images, one edit of each."""
    numbers = np.random.default_rng(count)
    codes = numbers.integers(0, layout.vocabulary.codes, (count, grid.height, grid.width))
    prompts = [layout.prompt(each, INSTRUCTION, "edit", grid) for each in codes]
    return [SamplingRequest(tuple(prompt.tolist()), "edit", grid, (seed,)) for seed, prompt in enumerate(prompts)]


def seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def small(side: int = 12) -> tuple[SequenceLayout, Grid, dict[str, Engine]]:
    """The embedded model in float32 on the processor, for edits of ``side`` x ``side`` codes."""
    model = load_model(None, device="cpu")
    return (
        model.layout,
        Grid(side, side),
        {
            "transformers": TransformersEngine(model.language, model.layout),
            "vllm": VllmEngine(model.folder, model.layout, device=model.device, dtype=model.dtype),
        },
    )


def large() -> tuple[SequenceLayout, Grid, dict[str, Engine]]:
    """8 B's shape in bfloat16 on a GPU; its weights are random, so what is drawn means nothing, but the time does."""
    config = Emu3TextConfig(
        vocab_size=EMU3.size,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=9216,
        attention_dropout=0.0,
        pad_token_id=EMU3.pad,
        bos_token_id=EMU3.bos,
        eos_token_id=EMU3.eos,
    )
    layout, device = SequenceLayout(EMU3, load_model(None, device="cpu").layout.text), torch.device("cuda", 0)
    folder = Path(tempfile.mkdtemp())
    write_json(
        folder / "config.json",
        {**config.to_dict(), "model_type": names.NATIVE_LANGUAGE, "architectures": [names.LANGUAGE_CLASS]},
    )
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    arguments = {"load_format": "dummy", "gpu_memory_utilization": 0.4}
    fast = VllmEngine(folder, layout, device=device, dtype=torch.bfloat16, engine_args=arguments)
    with device:
        language = Emu3ForCausalLM(config).to(torch.bfloat16).eval()
    return layout, Grid(64, 64), {"transformers": TransformersEngine(language, layout), "vllm": fast}


def measure(
    counts: list[int], rounds: int, *, shape: Callable[[], tuple[SequenceLayout, Grid, dict[str, Engine]]]
) -> Any:
    """Images a second of each engine: the best of ``rounds``, the engines taking turns after a round to warm up."""
    layout, grid, engines = shape()
    if layout.vocabulary != EMU3:  # in bfloat16 a rounding decides between ids that are as good as equal
        requested = requests(layout, min(counts), grid)
        greedy = SamplingParams(0)
        generated = [
            [each.ids.tolist() for (each,) in engine.generate(requested, greedy)] for engine in engines.values()
        ]
        if generated[0] != generated[1]:
            raise SystemExit("error: the likeliest ids of both engines differ")
    found = []
    for count in counts:
        requested = requests(layout, count, grid)
        best = dict.fromkeys(engines, float("inf"))
        for turn in range(rounds + 1):
            for name, engine in engines.items():
                taken = seconds(partial(engine.generate, requested, SamplingParams()))
                best[name] = min(best[name], taken) if turn else best[name]
        rates = {name: count / taken for name, taken in best.items()}
        found.append({"prompts": count, **rates, "ratio": rates["vllm"] / rates["transformers"]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape: Callable[[], tuple[SequenceLayout, Grid, dict[str, Engine]]] = large if given.large else small
    if given.smoke:
        vars(given).update(prompts=[2], rounds=1)
        shape = partial(small, 3)
    try:
        rows = measure(given.prompts, given.rounds, shape=shape)
    except Exception as failure:
        raise SystemExit(f"error: {explain(failure)}") from failure
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{'prompts':>8} {'transformers':>14} {'vllm':>8} {'ratio':>7}   pictures a second")
    for row in rows:
        print(f"{row['prompts']:>8} {row['transformers']:>14.3f} {row['vllm']:>8.3f} {row['ratio']:>7.2f}")


if __name__ == "__main__":
    main()
