"""A step of reinforcement learning: TRL's GRPOTrainer and EARL, on one small Emu3 model and the same prompts.

``python benchmarks/rl.py [--rounds 3] [--threads 2]`` prints the seconds of a step (the fastest of the rounds, taken
in turn), its phases, and the ratio. A step is: sample 8 completions for each of 4 prompts of 174 tokens, score them by
counting ids, log-probabilities of policy and reference, backward, AdamW. float32, no gradient checkpointing.
Completions have 159 tokens, an image of 12 x 12 codes with what closes it; TRL knows no grammar and samples as many.
``--smoke`` takes the smallest size. Both sides have to sample as much, and to change the same start.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig, PreTrainedTokenizerFast

from earl_cli.config.rl import RlConfig
from earl_cli.data.batches import DatasetRows
from earl_cli.data.store import SCHEMA
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.rewards.reward import Score
from earl_cli.tokens.layout import Grid, SequenceLayout
from earl_cli.tokens.text import train_byte_bpe
from earl_cli.tokens.vocabulary import CONTROLS, small_vocabulary
from earl_cli.training.optimizer_backends import DataParallelBackend
from earl_cli.training.rl.policy import Policy
from earl_cli.training.rl.rollouts import sample_prompts
from earl_cli.training.rl.setup import FrozenReference, RlRun
from earl_cli.training.rl.trainer import sample_policy, score_groups
from earl_cli.training.rl.update import PhaseTimer, update
from earl_cli.training.sft.loss import separate_vocabularies

VOCABULARY = 1500
KL, RATE = 0.0003, 3e-6


@dataclass(frozen=True)
class Size:
    """Of the model, and of a step: ``prompts`` of ``prompt`` tokens, and ``generations`` images for each."""

    hidden: int = 256
    layers: int = 6
    prompts: int = 4
    generations: int = 8
    prompt: int = 174
    side: int = 12

    @property
    def grid(self) -> Grid:
        return Grid(self.side, self.side)

    @property
    def completion(self) -> int:
        return self.grid.tokens + 1


SMOKE = Size(hidden=64, layers=1, prompts=2, generations=2, prompt=60, side=3)


def model(size: Size) -> Emu3ForCausalLM:
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        attention_dropout=0.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        tie_word_embeddings=False,
    )
    return Emu3ForCausalLM(config)


# -- EARL --------------------------------------------------------------------------------------------------------------


def layout_and_rows(size: Size) -> tuple[SequenceLayout, DatasetRows]:
    """A vocabulary of that size, and random images with an instruction that makes prompts of that length."""
    text = train_byte_bpe(["12*12"], size=257)
    layout = SequenceLayout(small_vocabulary(text.size, VOCABULARY - text.size - len(CONTROLS)), text)
    rng = np.random.default_rng(0)
    bare = len(layout.prompt(np.zeros((size.grid.height, size.grid.width), dtype=np.int64), "", "edit"))
    sides = dict.fromkeys(("source_height", "target_height"), size.grid.height)
    sides |= dict.fromkeys(("source_width", "target_width"), size.grid.width)
    pairs = []
    for index in range(size.prompts * 8):
        codes = rng.integers(0, layout.vocabulary.codes, size.grid.codes).astype(np.uint16)
        names = {"row": index, "id": str(index), "instruction": "x" * (size.prompt - bare), "source_hash": ""}
        pairs.append({**names, **sides, "thoughts": [], "source": codes, "target": codes})
    table = pa.Table.from_pylist(pairs, SCHEMA)
    return layout, DatasetRows(table, layout, (), ("random",), (len(pairs),), (0,))


class Silent:
    """Nobody watches."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None


def earl(size: Size) -> tuple[Any, Policy]:
    """A function that makes a step and returns the seconds of its phases; and what it trains."""
    layout, rows = layout_and_rows(size)
    config = RlConfig(
        model=None,
        data=(Path("random"),),
        output=Path("none"),
        episodes_per_iteration=size.prompts * size.generations,
        generations_per_sample=size.generations,
        batch_size=size.prompts * size.generations,
        kl_coeff=KL,
        learning_rate=RATE,
        gradient_checkpointing=False,
        precision="float32",
        device="cpu",
    )
    head = separate_vocabularies(layout.vocabulary), 1.0
    policy = Policy(model(size).eval(), *head)
    cpu = torch.device("cpu")
    reference = FrozenReference(Policy(model(size).eval(), *head).requires_grad_(False), cpu)
    run = RlRun(
        config=config,
        layout=layout,
        rows=rows,
        prompts=np.arange(len(rows)),
        validation_data=None,
        validation_prompts=np.zeros(0, dtype=np.int64),
        vision=None,
        backend=DataParallelBackend(policy, config, cpu),
        reference=reference,
        reward=lambda _: [],
        engine=lambda language: nullcontext(TransformersEngine(language, layout)),
        callbacks=Silent(),
    )

    def step(iteration: int) -> dict[str, float]:
        clock = PhaseTimer()
        with clock.phase("sampling"):
            rollouts = sample_policy(
                run, rows, sample_prompts(run.prompts, size.prompts, size.generations, 0, iteration)
            )
        assert rollouts is not None
        completions = [completion.ids.tolist() for rollout in rollouts for completion in rollout.completions]
        assert {len(rollout.request.prompt) for rollout in rollouts} == {size.prompt}
        assert [len(ids) for ids in completions] == [size.completion] * size.prompts * size.generations
        groups = score_groups(config, layout, rollouts, [Score(value) for value in count_low_ids(completions)])
        update(run, iteration, groups, clock)
        return clock.metrics()

    return step, policy


# -- TRL ---------------------------------------------------------------------------------------------------------------


def count_low_ids(completion_ids: list[list[int]]) -> list[float]:
    """The share of ids in the lower half: a reward that takes no time."""
    return [sum(token < VOCABULARY // 2 for token in ids) / max(1, len(ids)) for ids in completion_ids]


def compare_steps(size: Size, rounds: int, folder: Path) -> tuple[list[float], list[dict[str, float]]]:
    """The seconds of TRL's steps and of ours, taken in turn; the first of each is left out."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = {f"w{index}": index for index in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w1", bos_token="w2")
    rng = np.random.default_rng(0)
    random_ids = rng.integers(4, VOCABULARY, (size.prompts * 8, size.prompt))
    prompts = [" ".join(f"w{token}" for token in row) for row in random_ids]
    settings = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=size.prompts * size.generations,
        num_generations=size.generations,
        max_completion_length=size.completion,
        beta=KL,
        learning_rate=RATE,
        max_steps=rounds + 1,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        temperature=1.0,
    )
    theirs: list[float] = []
    ours: list[dict[str, float]] = []
    step, policy = earl(size)

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            theirs.append(time.perf_counter() - self.begun)
            ours.append(step(len(ours)))

    start = model(size)
    start.save_pretrained(folder / "start")
    lengths: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return count_low_ids(completion_ids)

    trainer = GRPOTrainer(
        Emu3ForCausalLM.from_pretrained(folder / "start"),  # it loads the reference from there as well
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[Stopwatch()],
    )
    trainer.train()
    if len(lengths) != (rounds + 1) * size.prompts * size.generations or max(lengths) != size.completion:
        raise SystemExit(f"error: TRL sampled {len(lengths)} completions of up to {max(lengths)} tokens")
    for name, trained in (("TRL", trainer.model), ("EARL", policy.language)):
        weights = zip(start.parameters(), trained.parameters(), strict=True)
        moved = max(float((now - before).detach().abs().max()) for before, now in weights)
        if not 0 < moved < 10 * RATE * (rounds + 1):
            raise SystemExit(f"error: {name} moved weights by {moved}")
    return theirs[1:], ours[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds = 1
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = compare_steps(SMOKE if arguments.smoke else Size(), arguments.rounds, Path(folder))
    best = min(ours, key=lambda metrics: metrics["time/iteration"])
    print(f"TRL   {min(theirs):6.2f} s a step")
    seconds = best.pop("time/iteration")
    phases = ", ".join(f"{name.removeprefix('time/')} {value:.2f}" for name, value in best.items())
    print(f"EARL  {seconds:6.2f} s a step: {phases}")
    print(f"ratio {min(theirs) / seconds:6.2f}")


if __name__ == "__main__":
    main()
