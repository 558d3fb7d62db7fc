"""Memory and time from a laptop to four nodes of eight H100, by calculation: the computed tables of docs/SCALING.md.

``python benchmarks/scaling.py`` prints them in seconds, with ``--smoke`` as well. Nothing is run. Configs are the
package's recipes, and what a training keeps on a GPU is the formula of `earl_cli.training.common.memory`, which
``--dry-run`` shows as well.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from earl_cli.config.loader import load_config
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.training.common.memory import Memory, ModelShape, estimate

UTILISATION = 0.4
"""The share of a device's arithmetic that training and prefill get."""
READING = 0.6
"""The share of a device's memory bandwidth that decoding gets."""
LINKING = 0.7
"""The share of a link's bandwidth that a collective or a copy gets."""
HOST_BANDWIDTH = 200e9
"""Bytes a second of the memory of one GPU's share of processors, for Adam in ZeRO-3 offload."""
ADAM_TRAFFIC = 28
"""Bytes a weight that Adam reads and writes: two moments, the master weight, the gradient, the new weight."""
ENGINE_OWN = 2e9
"""Bytes of a GPU that vLLM needs besides weights and cache."""
SEPARATE_SHARE = 0.9
"""vLLM's own default of gpu_memory_utilization, where it has GPUs of its own."""


@dataclass(frozen=True)
class Model:
    """A language model, the tokens of a prompt and of what it draws, and the bytes of a number."""

    shape: ModelShape
    prompt: int
    completion: int
    number: int

    @property
    def tokens(self) -> int:
        """Of a whole sequence."""
        return self.prompt + self.completion

    @property
    def multiplied(self) -> int:
        """N, the weights that a token is multiplied with: all but the embedding, which is looked up."""
        return self.shape.linear + self.shape.vocabulary * self.shape.hidden

    @property
    def cache(self) -> int:
        """Bytes of keys and values of a token."""
        return 2 * self.shape.layers * self.shape.kv_width * self.number

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return self.shape.parameters * self.number

    def activations(self, *, checkpointing: bool) -> int:
        """Bytes that a sequence keeps for the way back."""
        config = SftConfig(
            data=(Path("store"),), output=Path("run"), batch_size=1, gradient_checkpointing=checkpointing
        )
        return self.memory(config, 1).activations

    def memory(self, config: SftConfig | RlConfig, processes: int) -> Memory:
        """What training whole sequences needs on each of so many devices."""
        return estimate(self.shape, config, processes=processes, bfloat16=self.number == 2, longest=self.tokens)


@dataclass(frozen=True)
class Machine:
    """Equal devices: bytes, operations and bytes a second of each, of links between them, and to the host's memory.

    ``overhead`` is what a step of decoding takes beyond its arithmetic, in seconds.
    """

    name: str
    model: Model
    devices: int
    memory: float
    operations: float
    bandwidth: float
    link: float
    host_link: float
    overhead: float


@dataclass(frozen=True)
class Plan:
    """A recipe on a machine, with what is set besides."""

    machine: Machine
    recipe: str
    sets: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The first columns of a table: where, and with which config."""
        return [self.machine.name, f"`{' '.join([self.recipe, *self.sets])}`"]

    @property
    def sft(self) -> SftConfig:
        return load_config(SftConfig, self.recipe, self.sets, {"data": ("store",), "output": Path("run")})

    @property
    def rl(self) -> RlConfig:
        given = {"output": Path("run"), "data": ("store",), "coefficients": (1.0,)}
        return load_config(RlConfig, self.recipe, self.sets, given)


def with_weights(config: dict[str, int]) -> ModelShape:
    """The shape of a decoder with an untied head: linear layers, embedding and head, norms."""
    bare = ModelShape.of(0, config)
    norms = (2 * bare.layers + 1) * bare.hidden
    return ModelShape.of(bare.linear + 2 * bare.vocabulary * bare.hidden + norms, config)


PUBLISHED = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 184622,
}
EMBEDDED = json.loads((Path(__file__).parents[1] / "earl_cli/models/embedded/config.json").read_text(encoding="utf-8"))
LARGE = Model(with_weights(PUBLISHED), prompt=1093, completion=1059, number=2)
SMALL = Model(with_weights(EMBEDDED), prompt=174, completion=159, number=4)

LAPTOP = Machine("laptop", SMALL, 1, 16e9, 384e9, 50e9, 0, 50e9, 0.003)
CONSUMER = Machine("one GPU of 24 GB", LARGE, 1, 24e9, 165e12, 1008e9, 0, 32e9, 0.04)


def h100(name: str, devices: int, link: float) -> Machine:
    return Machine(name, LARGE, devices, 80e9, 989e12, 3350e9, link, 64e9, 0.005)


ONE = h100("one H100", 1, 0)
FOUR = h100("4 x H100", 4, 450e9)
EIGHT = h100("8 x H100", 8, 450e9)
NODES = h100("4 nodes of 8 x H100", 32, 400e9)

SFT = (
    Plan(LAPTOP, "embedded/sft"),
    Plan(CONSUMER, "sft/lora"),
    Plan(ONE, "sft/lora", ("quantize=none", "batch_size=8", "accumulation=8")),
    Plan(ONE, "sft/simple-offload", ("processes=1", "batch_size=8", "accumulation=8")),
    Plan(FOUR, "sft/simple"),
    Plan(EIGHT, "sft/simple", ("processes=8", "accumulation=4")),
    Plan(EIGHT, "sft/simple", ("processes=8", "batch_size=8", "accumulation=1")),
    Plan(NODES, "sft/simple", ("processes=32", "accumulation=1")),
)
ADAPTED = ("sharding=none", "lora_rank=32")
RL = (
    Plan(LAPTOP, "embedded/rl"),
    Plan(CONSUMER, "rl/sft_s__rl_sc", (*ADAPTED, "batch_size=1", "engine=transformers")),
    Plan(ONE, "rl/sft_s__rl_sc", (*ADAPTED, "vllm_gpu_memory_utilization=0.5")),
    Plan(FOUR, "rl/sft_s__rl_sc"),
    Plan(EIGHT, "rl/sft_s__rl_sc"),
    Plan(EIGHT, "rl/sft_s__rl_sc", ("engine_place=separate", "engine_gpus=[4,5,6,7]")),
    Plan(NODES, "rl/sft_s__rl_sc", ("episodes_per_iteration=256",)),
)


# -- supervised training -----------------------------------------------------------------------------------------------


def operations_of(config: SftConfig | RlConfig) -> int:
    """Floating-point operations for each token and weight of N, forward and back.

    2 forward, 2 for the gradients of states, 2 for those of weights, which frozen ones don't have, and 2 forward again
    under gradient checkpointing.
    """
    return 4 + (0 if config.lora_rank else 2) + (2 if config.gradient_checkpointing else 0)


def exchanged(plan: Plan, config: SftConfig | RlConfig, processes: int, batches: int) -> float:
    """Bytes that go through each process's link in a step of so many batches: a part (n - 1) / n of what is whole."""
    model = plan.machine.model
    trained = model.shape.adapters(config.lora_rank) if config.lora_rank else model.shape.parameters
    whole = {
        "none": 2 * 4 * trained,  # gradients in float32, summed and given back once a step
        "zero2": (batches + 1) * model.number * trained,  # gradients each time, weights once
        "zero3": 3 * batches * model.number * trained,  # weights forward and back, gradients
    }[config.sharding.removesuffix("-offload")]
    return whole * (processes - 1) / processes


def offloading(plan: Plan, config: SftConfig, processes: int) -> float:
    """Seconds that ZeRO-3's offload adds to a step: weights up twice a batch, gradients down, Adam beside."""
    if config.sharding != "zero3-offload":
        return 0.0
    model = plan.machine.model
    moved = 3 * config.accumulation * model.weights / processes
    adam = ADAM_TRAFFIC * model.shape.parameters / processes
    return moved / (plan.machine.host_link * LINKING) + adam / HOST_BANDWIDTH


def linked(machine: Machine, size: float) -> float:
    """Seconds for so many bytes through each device's link."""
    return size / (machine.link * LINKING) if size else 0.0


def sft_memory(plan: Plan) -> Memory:
    config = plan.sft
    return plan.machine.model.memory(config, config.processes or plan.machine.devices)


def sft_times(plan: Plan) -> tuple[int, float, float, float]:
    """Pairs in a step, and its seconds of arithmetic, of links between devices, of links to the host."""
    config, machine = plan.sft, plan.machine
    processes = config.processes or machine.devices
    pairs = config.batch_size * config.accumulation * processes
    work = operations_of(config) * machine.model.multiplied * pairs * machine.model.tokens
    arithmetic = work / (machine.devices * machine.operations * UTILISATION)
    links = linked(machine, exchanged(plan, config, processes, config.accumulation))
    return pairs, arithmetic, links, offloading(plan, config, processes)


# -- reinforcement learning --------------------------------------------------------------------------------------------


def rl_memory(plan: Plan) -> Memory:
    config, model = plan.rl, plan.machine.model
    found = model.memory(config, plan.machine.devices - len(config.engine_gpus))
    return Memory(**{**vars(found), "reference": 0 if config.lora_rank else model.weights})


@dataclass(frozen=True)
class Sampler:
    """An engine: over how many devices, how many sequences it draws in an iteration, and how many have room at once."""

    devices: int
    sequences: int
    room: float

    @staticmethod
    def of(plan: Plan) -> Sampler:
        config, machine = plan.rl, plan.machine
        spread = max(1, len(config.engine_gpus))
        engines = 1 if config.engine_gpus else machine.devices
        sequences = config.episodes_per_iteration // engines
        if config.engine == "transformers" or machine is LAPTOP:  # the policy itself draws
            kept = rl_memory(plan)
            free = machine.memory - kept.weights - kept.optimizer
        else:
            share = SEPARATE_SHARE if config.engine_gpus else config.vllm_gpu_memory_utilization
            free = spread * (share * machine.memory - ENGINE_OWN) - machine.model.weights
        return Sampler(spread, sequences, free / sequence_bytes(machine.model, config.generations_per_sample))

    @property
    def rounds(self) -> int:
        """How often it has to fill its cache."""
        return math.ceil(self.sequences / self.room)


def sequence_bytes(model: Model, generations: int) -> float:
    """Bytes of keys and values of a whole sequence, of whose prompt a group keeps one copy."""
    return model.cache * (model.completion + model.prompt / generations)


def decoding(machine: Machine, sequences: float, devices: int = 1) -> float:
    """Seconds of a step for so many sequences: reading weights and caches, or their arithmetic if that takes longer."""
    model = machine.model
    half_way = model.prompt + model.completion / 2
    read = model.multiplied * model.number + sequences * model.cache * half_way
    reading = read / (devices * machine.bandwidth * READING)
    arithmetic = 2 * model.multiplied * sequences / (devices * machine.operations * UTILISATION)
    return max(reading, arithmetic) + machine.overhead


def sampling(plan: Plan) -> float:
    """Seconds of an iteration's sampling: prompts once a group, then a step for each token."""
    config, machine, sampler = plan.rl, plan.machine, Sampler.of(plan)
    prompts = sampler.sequences / config.generations_per_sample
    prefill = 2 * machine.model.multiplied * prompts * machine.model.prompt
    together = sampler.sequences / sampler.rounds
    steps = sampler.rounds * machine.model.completion * decoding(machine, together, sampler.devices)
    return prefill / (sampler.devices * machine.operations * UTILISATION) + steps


def rl_times(plan: Plan) -> tuple[float, float, float, float]:
    """Seconds of an iteration: sampling, the reference, the update, and what links take."""
    config, machine = plan.rl, plan.machine
    model, trainers = machine.model, machine.devices - len(config.engine_gpus)
    batch = config.batch_size
    shared = min(batch, config.generations_per_sample)
    tokens = config.episodes_per_iteration * (model.completion + model.prompt / shared)
    each = model.multiplied * tokens / (trainers * machine.operations * UTILISATION)
    batches = config.episodes_per_iteration // trainers // batch
    links = linked(machine, exchanged(plan, config, trainers, batches))
    if not config.lora_rank and machine is not LAPTOP:
        links += 2 * model.weights / (machine.host_link * LINKING)  # the reference up, and down again
    if config.engine_gpus:
        links += linked(machine, model.weights)
    return sampling(plan), 2 * each, operations_of(config) * each, links


# -- tables ------------------------------------------------------------------------------------------------------------


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown under its heading."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def giga(size: float) -> str:
    return f"{size / 1e9:.2f}" if size < 100e9 else f"{size / 1e9:.0f}"


def seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


FACTS: tuple[tuple[str, str, Callable[[Model], str]], ...] = (
    ("weights P", "linear layers + 2·V·h + (2·L + 1)·h", lambda model: f"{model.shape.parameters:,}"),
    ("linear layers", "L·(2·h·(h + k) + 3·h·m)", lambda model: f"{model.shape.linear:,}"),
    ("weights that a token is multiplied with, N", "linear layers + V·h", lambda model: f"{model.multiplied:,}"),
    ("tokens of a sequence T", "prompt + completion", lambda model: f"{model.prompt} + {model.completion}"),
    ("weights, GB", "b·P", lambda model: f"{model.weights / 1e9:.3f}"),
    ("keys and values of a token, kB", "2·L·k·b", lambda model: f"{model.cache / 1e3:.1f}"),
    ("keys and values of a sequence, MB", "2·L·k·b·T", lambda model: f"{model.cache * model.tokens / 1e6:.1f}"),
    (
        "activations of a sequence, GB",
        "L·A with A = T·(13·h + 4·m + 2·k)·b",
        lambda model: f"{model.activations(checkpointing=False) / 1e9:.3f}",
    ),
    (
        "the same with gradient checkpointing, GB",
        "L·T·h·b + A",
        lambda model: f"{model.activations(checkpointing=True) / 1e9:.3f}",
    ),
    (
        "logits of a sequence, if they were held whole, GB",
        "4·T·V",
        lambda model: f"{4 * model.tokens * model.shape.vocabulary / 1e9:.3f}",
    ),
    ("training, TFLOP a sequence", "6·N·T", lambda model: f"{6 * model.multiplied * model.tokens / 1e12:.3f}"),
    (
        "attention's products in training, TFLOP a sequence",
        "6·L·h·T²",
        lambda model: f"{6 * model.shape.layers * model.shape.hidden * model.tokens**2 / 1e12:.3f}",
    ),
    ("prefill, TFLOP a prompt", "2·N·prompt", lambda model: f"{2 * model.multiplied * model.prompt / 1e12:.3f}"),
)


def model_table() -> str:
    rows = [[what, formula, value(SMALL), value(LARGE)] for what, formula, value in FACTS]
    return table("Computed: the two models", ["what", "formula", "embedded", "8 B"], rows)


def machine_table() -> str:
    rows = [
        [
            machine.name,
            f"{machine.devices}",
            f"{machine.memory / 1e9:.0f}",
            f"{machine.operations / 1e12:.3g}",
            f"{machine.bandwidth / 1e9:.0f}",
            f"{machine.link / 1e9:.0f}" if machine.link else "-",
            f"{machine.host_link / 1e9:.0f}",
            f"{machine.overhead * 1e3:.0f}",
        ]
        for machine in (LAPTOP, CONSUMER, ONE, FOUR, EIGHT, NODES)
    ]
    heads = ["where", "devices", "GB", "TFLOP/s", "memory, GB/s", "link, GB/s", "host, GB/s", "overhead, ms"]
    return table("Assumed: the machines", heads, rows)


def memory_rows(plan: Plan, memory: Memory, last: str) -> list[str]:
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits, memory.reference)
    sizes = [giga(size) if size else "-" for size in (*parts, memory.device)]
    return [*plan.words, *sizes, f"{plan.machine.memory / 1e9:.0f}", last]


MEMORY_HEADS = ("weights", "gradients", "Adam", "activations", "logits", "reference", "in all", "of")


def sft_memory_table() -> str:
    rows = []
    for plan in SFT:
        memory = sft_memory(plan)
        rows.append(memory_rows(plan, memory, giga(memory.host) if memory.host else "-"))
    heads = ["where", "config", *MEMORY_HEADS, "host of each"]
    return table("Computed: memory of supervised training, GB on each device", heads, rows)


def sft_time_table() -> str:
    rows = []
    for plan in SFT:
        pairs, *parts = sft_times(plan)
        step = sum(parts)
        shown = [seconds(part) if part else "-" for part in parts]
        rows.append([*plan.words, f"{pairs}", *shown, seconds(step), f"{pairs / step:.2f}"])
    heads = ["where", "config", "pairs", "arithmetic", "links", "host", "a step", "pairs/s"]
    return table("Computed: time of supervised training, seconds", heads, rows)


def rl_memory_table() -> str:
    rows = []
    for plan in RL:
        config = plan.rl
        beside = config.engine == "auto" and plan.machine is not LAPTOP and not config.engine_gpus
        vllm = giga(config.vllm_gpu_memory_utilization * plan.machine.memory) if beside else "-"
        rows.append(memory_rows(plan, rl_memory(plan), vllm))
    heads = ["where", "config", *MEMORY_HEADS, "vLLM meanwhile"]
    return table("Computed: memory of reinforcement learning, GB on each training device", heads, rows)


def rl_time_table() -> str:
    rows = []
    for plan in RL:
        parts, sampler = rl_times(plan), Sampler.of(plan)
        edits = [f"{plan.rl.episodes_per_iteration}", f"{sampler.sequences}", f"{math.floor(sampler.room):,}"]
        shown = [seconds(part) if part else "-" for part in parts]
        rows.append([*plan.words, *edits, *shown, seconds(sum(parts))])
    heads = ["where", "config", "edits", "an engine", "room for", "sampling", "reference", "update", "links", "in all"]
    return table("Computed: time of an iteration of reinforcement learning without its judge, seconds", heads, rows)


def decoding_table() -> str:
    rows = []
    for together in (1, 8, 32, 128):
        step = decoding(ONE, together)
        cache = together * LARGE.cache * LARGE.tokens
        rows.append(
            [
                f"{together}",
                f"{giga(LARGE.weights)} + {giga(cache)}",
                f"{step * 1e3:.1f}",
                f"{together / step:,.0f}",
                f"{LARGE.completion * step:.1f}",
                f"{together / (LARGE.completion * step) * 60:.1f}",
            ]
        )
    heads = ["sequences", "weights + cache, GB", "ms a step", "tokens/s", "seconds an edit", "edits a minute"]
    return table("Computed: decoding on one H100, by how many are sampled together", heads, rows)


def tables() -> Iterator[str]:
    """Every computed table of the document, in its order."""
    for name in ("APP__DATA_DIR", "APP__BASE_EXP_DIR", "APP__REWARD_FUNCTION_API_BASE", "APP__RUN_NAME"):
        os.environ.setdefault(name, "here")  # the published recipes ask for them
    yield model_table()
    yield machine_table()
    yield sft_memory_table()
    yield sft_time_table()
    yield rl_memory_table()
    yield rl_time_table()
    yield decoding_table()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="as without: there is nothing that takes long")
    parser.parse_args()
    print("\n\n".join(tables()))


if __name__ == "__main__":
    main()
