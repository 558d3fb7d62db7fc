"""The config of reinforcement learning; names and defaults are the published ones (arXiv 2508.01119 and its code).

Fields from ``data`` on are EARL's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from earl_cli.config.sampling import PARAMETERS, SamplingParams, problem
from earl_cli.tokens.grammar import Overlong
from earl_cli.tokens.layout import THINKING_START, Mode

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(allow_inf_nan=True)]  # what is wrong with one is checked in rewards.registry
NotEmpty = BeforeValidator(lambda given: given or None)  # published files say "none" by an empty list
Coefficients = Annotated[tuple[Above, ...] | None, NotEmpty]
Paths = Annotated[Path | tuple[Path, ...] | None, NotEmpty]

FINAL_REWARDS = ("viescore", "ground_score", "sqrt(viescore_pqxground_score)")


class RlConfig(BaseModel):
    """Every setting of ``earl rl``.

    One iteration samples ``generations_per_sample`` edits of each of ``episodes_per_iteration /
    generations_per_sample`` prompts, over all processes together, and updates the weights from them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    run_name: str | None = None
    base_exp_dir: Path | None = None  # with run_name: where the run goes, unless output says so
    model_path: str | None = "mair-lab/sft-simple"  # None: the model that ships with the package
    model_revision: str | None = None
    tokenizer_path: str | None = None  # None: the model's own
    train_paths_file: Paths = None  # data sets, or a file that lists some (config.paths), in place of data
    coefficients: Coefficients = None  # None: every set as large as the largest
    val_paths_file: Paths = None  # the same in place of validation
    val_coefficients: Coefficients = None
    assistant_prefill: str | None = "<|image start|>"  # what the answer begins with; it decides the mode

    num_iterations: Positive = 2000
    episodes_per_iteration: Positive = 128
    generations_per_sample: Annotated[int, Field(ge=2)] = 8
    kl_coeff: Amount = 0.0003
    temperature: Above = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    max_response_tokens: Positive = 2048
    model_context_size: Positive = 3000
    per_device_batch_size: Positive = 8
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.3
    random_seed: Count = 42
    emu3_use_logit_processor: bool = True
    separate_language_and_vision_vocabs: bool = True
    train_text_tokens_only: bool = False
    text_only_cycle_steps: Positive = 10
    text_only_steps: Positive = 10
    train_vision_tokens_only: bool = False
    vision_only_cycle_steps: Positive = 10
    vision_only_steps: Positive = 10
    reward_function_api_base: str | None = None
    reward_function_api_model_name: str = "Qwen/Qwen2.5-VL-72B-Instruct"
    reward_compute_viescore: bool = True
    reward_compute_ground_score: bool = False
    reward_final_reward: str = "viescore"
    log_episodes_every_n_iterations: Positive = 5
    save_checkpoints_every_n_iterations: Positive = 100
    keep_checkpoints_every_n_iterations: Positive = 100
    push_to_hub_every_n_iterations: Positive = 100
    push_to_hub_repo_id: str | None = None  # a repository that gets the checkpoints as revisions
    learning_rate: Above = 3e-6
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Above = 1e-8
    weight_decay: Amount = 0.0
    clip: Above = 1.0
    gradient_checkpointing: bool = True

    data: tuple[Path, ...] = ()
    validation: tuple[Path, ...] = ()
    output: Path | None = None
    reward: str | dict[str, Weight] | None = None  # None: reward_final_reward; a name, module:function, weights
    rubrics: Path | None = None  # wording of the judge's task in place of the package's
    judge_declaration: str = "earl"  # how it is asked: a name of rewards/declarations.toml, or a file
    judge_api_key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if there is one
    judge_at_once: Positive = 64
    judge_timeout: Above = 120.0  # seconds for one answer
    judge_patience: Above | None = None  # seconds that a run waits for a judge that is down; None: as long as it takes
    overlong: Overlong = "force"  # zero, as published: thinking that leaves no room gives no image, worth 0 to viescore
    train_forced_tokens: bool = False  # as published; the grammar leaves them no choice
    advantage_over_std: bool = True  # False: Dr. GRPO, arXiv 2503.20783
    local_credit: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of a code's advantage that is its own place's
    drop_groups_without_signal: bool = False  # DAPO, arXiv 2503.14476: they don't count in the mean over tokens either
    updates_per_iteration: Positive = 1
    clip_low: Share = 0.2  # with several updates: PPO's range of the ratio is 1 - clip_low to 1 + clip_high
    clip_high: Above = 0.2  # DAPO: 0.28
    entropy_coeff: Amount = 0.0
    warmup_iterations: Count = 0
    lora_rank: Positive | None = None  # None: every weight is trained
    lora_alpha: Positive = 32
    sharding: Literal["none", "zero2", "zero3", "zero3-offload"] = "none"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    device: str = "auto"
    engine: Literal["auto", "transformers", "vllm"] = "auto"  # auto: vllm for large models on GPUs
    engine_args: dict[str, Any] = Field(default_factory=dict)  # vLLM's, such as tensor_parallel_size
    engine_place: Literal["colocated", "separate"] = "colocated"  # separate: one vLLM in a process of its own
    engine_gpus: tuple[Count, ...] = ()  # of a separate engine; nothing is trained on them
    processes: Positive | None = None
    validate_every: Positive = 50
    validation_rows: Positive = 64
    gallery_rows: Positive = 9
    keep: Positive = 2  # whole checkpoints to go on from; of older ones the kept have their model only
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    save_layout: Literal["native", "original"] = "native"

    @property
    def mode(self) -> Mode:
        """What the published prefill stands for; what is prefilled is `SequenceLayout.prompt`'s, as in training."""
        return mode_of(self.assistant_prefill)

    @property
    def sampling(self) -> SamplingParams:
        """How rollouts are sampled."""
        return SamplingParams(**{each.name: getattr(self, each.name) for each in PARAMETERS})

    @property
    def batch_size(self) -> int:
        """Sequences in memory at a time, in each process."""
        return self.per_device_batch_size

    @property
    def quantize(self) -> Literal["none"]:
        """Weights are as they are."""
        return "none"

    @property
    def prompts_per_iteration(self) -> int:
        """Prompts that an iteration draws, over all processes."""
        return self.episodes_per_iteration // self.generations_per_sample

    @property
    def folder(self) -> Path:
        """Where the run goes."""
        if self.output is not None:
            return self.output
        return (self.base_exp_dir or Path()) / (self.run_name or "rl")

    @field_validator(*(each.name for each in PARAMETERS))
    @classmethod
    def _check_sampling(cls, value: float, info: ValidationInfo) -> float:
        parameter = next(each for each in PARAMETERS if each.name == info.field_name)
        if wrong := problem(parameter, value):
            raise ValueError(wrong)
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.episodes_per_iteration % self.generations_per_sample:
            raise ValueError(
                f"episodes_per_iteration {self.episodes_per_iteration} is no multiple of generations_per_sample "
                f"{self.generations_per_sample}"
            )
        if self.train_text_tokens_only and self.train_vision_tokens_only:
            raise ValueError("train_text_tokens_only and train_vision_tokens_only exclude each other")
        if self.output is None and self.run_name is None:
            raise ValueError("say where the run goes: --output, or run_name and base_exp_dir")
        if not self.data and self.train_paths_file is None:
            raise ValueError("say what to train on: --data, or train_paths_file")
        if self.data and self.train_paths_file is not None:
            raise ValueError("data and train_paths_file exclude each other: data=[] leaves a recipe's out")
        if self.validation and self.val_paths_file is not None:
            raise ValueError("validation and val_paths_file exclude each other: validation=[] leaves a recipe's out")
        if self.lora_rank is not None and self.sharding.startswith("zero3"):
            raise ValueError("adapters are small enough not to be sharded by ZeRO-3: use sharding none or zero2")
        if self.reward is None and self.reward_final_reward not in FINAL_REWARDS:
            raise ValueError(f"reward_final_reward is none of {', '.join(FINAL_REWARDS)}")
        if self.engine_place == "separate" and self.engine == "transformers":
            raise ValueError("engine_place separate is for the engine vllm")
        if self.engine_gpus and self.engine_place == "colocated":
            raise ValueError("engine_gpus are for engine_place separate")
        mode_of(self.assistant_prefill)
        return self

    def for_processes(self, there: int) -> str | None:
        """The settings that keep the prompts of an iteration where so many processes run; None if there are none."""
        if self.prompts_per_iteration % there:
            return None
        return f"--set processes={there} keeps the {self.prompts_per_iteration} prompts an iteration"

    def remarks(self, origins: Mapping[str, str]) -> list[str]:
        """What of these settings has no effect, or another one than one may think.

        ``origins`` says where each comes from; those that flags and --set gave were meant.
        """
        meant = {key for key, origin in origins.items() if origin.startswith("--")}
        save, length = self.save_checkpoints_every_n_iterations, self.num_iterations
        validates = bool(self.validation or self.val_paths_file)
        found = []
        if save >= length:
            found.append(
                f"save_checkpoints_every_n_iterations {save}: the only checkpoint is that of the end, {length}"
            )
        for name in ("keep_checkpoints_every_n_iterations", "push_to_hub_every_n_iterations"):
            every = getattr(self, name)
            both = math.lcm(every, save)
            if both != every and (name in meant or not name.startswith("push") or self.push_to_hub_repo_id):
                found.append(
                    f"{name} {every} is no multiple of save_checkpoints_every_n_iterations {save}: it happens every "
                    f"{both} iterations"
                )
        if validates and self.validate_every > length:
            found.append(f"validate_every {self.validate_every}: validated is at the start and at the end, {length}")
        if not validates and meant & {"validate_every", "validation_rows"}:
            found.append("without validation data nothing is validated, and no checkpoint is known to be the best")
        if self.updates_per_iteration == 1 and meant & {"clip_low", "clip_high"}:
            found.append("clip_low and clip_high have no effect with updates_per_iteration 1")
        if self.lora_rank is None and "lora_alpha" in meant:
            found.append("lora_alpha has no effect without lora_rank")
        if self.mode == "edit" and self.train_text_tokens_only:
            found.append(
                "train_text_tokens_only: in the mode edit no text is sampled, so such iterations train nothing"
            )
        return found


def mode_of(prefill: str | None) -> Mode:
    """The mode of a published prefill, or of the mode's own name. Raises ValueError for one that is neither."""
    if prefill in ("edit", "reasoning", "mixed"):
        return prefill  # type: ignore[return-value]
    if prefill is None or not prefill:
        return "mixed"
    if THINKING_START in prefill:
        return "reasoning"
    if prefill.startswith("<|image start|>"):
        return "edit"
    raise ValueError(
        f"assistant_prefill {prefill!r} is neither a mode (edit, reasoning, mixed) nor a published prefill"
    )
