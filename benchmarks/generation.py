"""Sampling edits: our engine against transformers' own `generate` with the grammar as a logits processor.

The model has the embedded model's shape and random weights; both sides draw the same number of completions with the
same temperature and top-k under the same grammar. Before that, both draw the likeliest ids, which have to be the same.
`python benchmarks/generation.py [--json]`; ``--smoke`` takes the smallest size.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig, LogitsProcessor, LogitsProcessorList

from earl_cli.config.sampling import SamplingParams
from earl_cli.generation.engine import SamplingRequest
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.tokens.grammar import ImageGrammar
from earl_cli.tokens.layout import Grid, SequenceLayout
from earl_cli.tokens.text import train_byte_bpe
from earl_cli.tokens.vocabulary import small_vocabulary

INSTRUCTION = "make it snowy and add a red circle in the middle"


class GrammarByPosition(LogitsProcessor):
    """The grammar as cheaply as a logits processor can have it: one mask a step, decided by the position alone."""

    def __init__(self, grammar: ImageGrammar, prompt: int) -> None:
        self.grammar, self.prompt = grammar, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = self.grammar.forced(input_ids.shape[1] - self.prompt)
        if forced is None:
            scores[:, : self.grammar.vocabulary.visual_start] = float("-inf")
            return scores
        return torch.full_like(scores, float("-inf")).index_fill_(1, torch.tensor([forced]), 0.0)


def model_and_layout() -> tuple[Emu3ForCausalLM, SequenceLayout]:
    vocabulary = small_vocabulary(512, 4096)
    config = Emu3TextConfig(
        vocab_size=vocabulary.size,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        attention_dropout=0.0,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
    )
    torch.manual_seed(0)
    return Emu3ForCausalLM(config).eval(), SequenceLayout(vocabulary, train_byte_bpe([INSTRUCTION], 300))


def measure(prompts: int, samples: int, grid: Grid, sampling: SamplingParams, rounds: int) -> dict[str, Any]:
    """Best of ``rounds`` alternating runs of both sides, in tokens a second: every token after the prompt counts."""
    model, layout = model_and_layout()
    codes = np.random.default_rng(0).integers(0, layout.vocabulary.codes, (prompts, grid.height, grid.width))
    ids = [layout.prompt(each, INSTRUCTION) for each in codes]
    grammar = ImageGrammar(layout.vocabulary, grid.height, grid.width)
    engine = TransformersEngine(model, layout)
    requests = [SamplingRequest(tuple(each.tolist()), "edit", grid, tuple(range(samples))) for each in ids]
    batch = torch.from_numpy(np.stack(ids))

    def ours(sampling: SamplingParams) -> list[list[int]]:
        return [each.ids.tolist() for group in engine.generate(requests, sampling) for each in group]

    def theirs(sampling: SamplingParams) -> list[list[int]]:
        out = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            top_k=sampling.top_k or 0,
            num_return_sequences=samples if sampling.temperature else 1,
            max_new_tokens=grammar.length,
            eos_token_id=layout.vocabulary.eos,
            pad_token_id=layout.vocabulary.pad,
            logits_processor=LogitsProcessorList([GrammarByPosition(grammar, batch.shape[1])]),
        )
        found: list[list[int]] = out[:, batch.shape[1] :].tolist()
        return found

    if ours(SamplingParams(0))[::samples] != theirs(SamplingParams(0)):
        raise SystemExit("error: the likeliest ids of both sides differ")
    sides: dict[str, Callable[[SamplingParams], list[list[int]]]] = {"earl": ours, "transformers": theirs}
    best = dict.fromkeys(sides, 0.0)
    for turn in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            count = sum(map(len, side(sampling)))
            taken = time.perf_counter() - start
            if count != prompts * samples * grammar.length:
                raise SystemExit(f"error: {name} drew {count} tokens")
            best[name] = max(best[name], count / taken) if turn else 0.0
    return {
        "prompts": prompts,
        "prompt_tokens": batch.shape[1],
        "samples_a_prompt": samples,
        "grid": str(grid),
        "threads": torch.get_num_threads(),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "tokens_per_second": {name: round(rate, 1) for name, rate in best.items()},
        "ratio": round(best["earl"] / best["transformers"], 2),
    }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4], help="prompts in a batch")
    parser.add_argument("--samples", type=int, default=8, help="completions a prompt")
    parser.add_argument("--side", type=int, default=12, help="rows and columns of codes")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        vars(given).update(prompts=[2], samples=2, side=3, rounds=1)
    torch.set_num_threads(given.threads)
    sampling = SamplingParams(given.temperature, given.top_k)
    grid = Grid(given.side, given.side)
    results = [measure(prompts, given.samples, grid, sampling, given.rounds) for prompts in given.prompts]
    if given.json:
        print(json.dumps(results))
        return
    for result in results:
        show(result)


def show(result: dict[str, Any]) -> None:
    """Both sides and their ratio, for people."""
    rates = result["tokens_per_second"]
    print(
        f"{result['prompts']} prompt(s) of {result['prompt_tokens']} tokens, "
        f"{result['samples_a_prompt']} samples each, {result['grid']} codes, {result['threads']} thread(s)"
    )
    print(f"transformers.generate   {rates['transformers']:9.1f} tokens/s")
    print(f"earl                    {rates['earl']:9.1f} tokens/s")
    print(f"ratio                   {result['ratio']:9.2f}")


if __name__ == "__main__":
    main()
