"""The config of reinforcement learning; most defaults are the published values (arXiv 2508.01119 and its code)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from earl_cli.config.keys import SAME, Above, Amount, Count, Positive, Share, TrainingConfig, key
from earl_cli.config.sampling import PARAMETERS, SamplingParams, problem
from earl_cli.tokens.grammar import Overlong
from earl_cli.tokens.layout import THINKING_START, Mode

Weight = Annotated[float, Field(allow_inf_nan=True)]  # checked in rewards.registry
NotEmpty = BeforeValidator(lambda given: given or None)  # published files say "none" by an empty list
Coefficients = Annotated[tuple[Above, ...] | None, NotEmpty]
Paths = Annotated[Path | tuple[Path, ...] | None, NotEmpty]

SAMPLING_HELP = {parameter.name: parameter.metadata["help"] for parameter in PARAMETERS}
FINAL_REWARDS = ("viescore", "ground_score", "sqrt(viescore_pqxground_score)")


class RlConfig(TrainingConfig):
    """Every setting of ``earl rl``.

    One iteration samples ``generations_per_sample`` edits of each of ``episodes_per_iteration /
    generations_per_sample`` prompts, over all processes together, and updates the weights from them.
    """

    run_name: str | None = key(
        None, "Name of the run; its folder is base_exp_dir/run_name unless output is set.", published=SAME
    )
    base_exp_dir: Path | None = key(None, "Folder of runs.", published=SAME)
    model: str | None = key(
        "mair-lab/sft-simple",
        "The model to start from; null: the one that ships with the package.",
        published=SAME,
        name="model_path",
        note="the run's supervised model",
    )
    model_revision: str | None = key(None, "Branch, tag or commit of the model on the Hub.", published=SAME)
    tokenizer_path: str | None = key(
        None,
        "Folder or Hub id of the text tokenizer; null: the model's own.",
        published="BAAI/Emu3-Stage1",
        note="BAAI/Emu3-Gen in the recipes sft_sc and sft_sc2stage",
    )
    train_paths_file: Paths = key(None, "Data sets, or a file that lists them, in place of data.", published=SAME)
    coefficients: Coefficients = key(
        None,
        "Copies of each data set in the mixture, such as 6 or 0.7; null: every set is as large as the largest.",
        published=SAME,
        note="by the run",
    )
    val_paths_file: Paths = key(None, "Data sets, or a file that lists them, in place of validation.", published=SAME)
    val_coefficients: Coefficients = key(None, "Accepted from published configs; has no effect.", published=SAME)
    assistant_prefill: str | None = key(
        "<|image start|>",
        "Mode: edit, reasoning or mixed, or a published prefill that stands for one of them.",
        published=SAME,
        note="in the recipes sft_think_s: Let's think step by step. <|start thinking|>",
    )

    num_iterations: Positive = key(
        2000, "Iterations of the run.", published=SAME, note="3000 in the recipes sft_s and sft_think_s"
    )
    episodes_per_iteration: Positive = key(128, "Edits sampled in an iteration, over all processes.", published=SAME)
    generations_per_sample: Annotated[int, Field(ge=2)] = key(
        8, "Edits of each prompt, the size of a group.", published=SAME
    )
    kl_coeff: Amount = key(0.0003, "Weight of the KL divergence from the reference model.", published=SAME)
    temperature: Above = key(1.0, SAMPLING_HELP["temperature"], published=SAME)
    top_p: float = key(1.0, SAMPLING_HELP["top_p"], published=SAME)
    top_k: int = key(-1, "Sample among the k likeliest tokens; 0 or less is no limit.", published=SAME)
    min_p: float = key(0.0, SAMPLING_HELP["min_p"])
    max_response_tokens: Positive = key(2048, "Most tokens of a completion.", published=SAME)
    max_length: Positive = key(
        3000,
        "Most tokens of a prompt with its completion.",
        published=SAME,
        name="model_context_size",
        note="4096 in the recipes sft_s and sft_think_s",
    )
    batch_size: Positive = key(
        8,
        "Sequences in memory at a time in an update, in each process.",
        published=SAME,
        name="per_device_batch_size",
        note="4 in the recipes sft_s and sft_think_s",
    )
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = key(
        0.3, "Share of each GPU's memory that colocated vLLM takes.", published=SAME
    )
    seed: Count = key(42, "Seed of prompts and of sampling.", published=SAME, name="random_seed")
    emu3_use_logit_processor: bool = key(
        True, "Sample only the tokens that the grammar of images allows.", published=SAME
    )
    separate_vocabularies: bool = key(
        True,
        "Normalise image tokens over the image vocabulary, and all others over the ids below it.",
        published=SAME,
        name="separate_language_and_vision_vocabs",
    )
    train_text_tokens_only: bool = key(
        False,
        "Train text tokens only in the first iterations of each cycle, image tokens only in the rest.",
        published=SAME,
    )
    text_only_cycle_steps: Positive = key(10, "Iterations of such a cycle.", published=SAME)
    text_only_steps: Positive = key(10, "Its first iterations, which train text tokens.", published=SAME)
    train_vision_tokens_only: bool = key(
        False, "Train image tokens only in the first iterations of each cycle, all tokens in the rest.", published=SAME
    )
    vision_only_cycle_steps: Positive = key(10, "Iterations of such a cycle.", published=SAME)
    vision_only_steps: Positive = key(10, "Its first iterations, which train image tokens.", published=SAME)
    reward_function_api_base: str | None = key(None, "URL of the judge's server.", published=SAME, note="by the run")
    reward_function_api_model_name: str = key(
        "Qwen/Qwen2.5-VL-72B-Instruct", "Name of the judge's model.", published=SAME
    )
    reward_compute_viescore: bool = key(True, "Compute VIEScore also where the reward doesn't need it.", published=SAME)
    reward_compute_ground_score: bool = key(
        False, "Compute the ground score also where the reward doesn't need it.", published=SAME
    )
    reward_final_reward: str = key(
        "viescore",
        "The reward where reward is null: viescore, ground_score, sqrt(viescore_pqxground_score).",
        published=SAME,
    )
    log_episodes_every_n_iterations: Positive = key(
        5, "Iterations between tables and galleries of rollouts.", published=SAME
    )
    checkpoint_every: Positive = key(
        100, "Iterations between checkpoints.", published=SAME, name="save_checkpoints_every_n_iterations"
    )
    keep_model_every: Positive = key(
        100,
        "Old checkpoints keep their model if their iteration is a multiple of this.",
        published=SAME,
        name="keep_checkpoints_every_n_iterations",
    )
    push_to_hub_every_n_iterations: Positive = key(
        100, "Iterations between uploads to push_to_hub_repo_id.", published=SAME
    )
    push_to_hub_repo_id: str | None = key(
        None,
        "Repository on the Hub that gets the checkpoints as revisions; null: nothing is sent.",
        published="imged_rl__ and the run's name",
    )
    learning_rate: Above = key(3e-6, "Learning rate of AdamW, after the warm-up.", published=SAME, name="")
    betas: tuple[Share, Share] = key((0.9, 0.999), "Betas of AdamW.", published=SAME, name="")
    epsilon: Above = key(1e-8, "Epsilon of AdamW.", published=SAME, name="")
    weight_decay: Amount = key(0.0, "Weight decay of AdamW.", published=SAME, name="")
    max_grad_norm: Above = key(1.0, "Norm to which gradients are clipped.", published=SAME, name="", aliases=["clip"])
    gradient_checkpointing: bool = key(
        True, "Recompute activations in the backward pass to save memory.", published=SAME, name=""
    )

    data: tuple[Path, ...] = key((), "Token stores and published folders to take prompts from.")
    validation: tuple[Path, ...] = key((), "Token stores to validate on.")
    output: Path | None = key(None, "Folder of the run, and of the model at its end.")
    reward: str | dict[str, Weight] | None = key(
        None, "A reward by name, MODULE:FUNCTION, or an object of weights; null: reward_final_reward."
    )
    rubrics: Path | None = key(None, "Rubrics of the judge in place of the package's.")
    judge_declaration: str = key(
        "earl", "Request format of the judge: a name, or a TOML file.", published="viescore-published", name=""
    )
    judge_api_key_variable: str = key("OPENAI_API_KEY", "Environment variable with the judge's API key.")
    judge_concurrency: Positive = key(
        64, "Requests to the judge at a time.", published=SAME, name="", aliases=["judge_at_once"]
    )
    judge_timeout: Above = key(120.0, "Timeout of one request to the judge, in seconds.")
    judge_outage_timeout: Above | None = key(
        None,
        "Seconds that a run waits for a judge that is down before it ends; null: no limit.",
        aliases=["judge_patience"],
    )
    overlong: Overlong = key(
        "force",
        "After reasoning that leaves no room for an image: force one, or zero, no image, worth 0 to viescore.",
        published="zero",
        name="",
    )
    train_forced_tokens: bool = key(
        False, "Train the tokens that the grammar leaves no choice of as well.", published=True, name=""
    )
    advantage_over_std: bool = key(
        True, "Divide advantages by the group's deviation; false: Dr. GRPO (arXiv 2503.20783).", published=SAME, name=""
    )
    per_token_advantage: Annotated[float, Field(ge=0, le=1)] = key(
        0.0,
        "Share of a token's advantage that is the reward of its own place in the image, for rewards that give one.",
        published=SAME,
        name="",
        aliases=["local_credit"],
    )
    drop_groups_without_signal: bool = key(
        False, "Leave groups of equal rewards out of the loss, and out of its mean (DAPO, arXiv 2503.14476)."
    )
    updates_per_iteration: Positive = key(
        1, "Optimizer steps on the rollouts of an iteration.", published=SAME, name=""
    )
    clip_low: Share = key(0.2, "With several updates, the probability ratio is clipped below 1 - clip_low (PPO).")
    clip_high: Above = key(0.2, "With several updates, the ratio is clipped above 1 + clip_high (DAPO: 0.28).")
    entropy_coeff: Amount = key(0.0, "Weight of the entropy bonus.")
    warmup_iterations: Count = key(0, "Iterations of linear warm-up.", published=SAME, name="")
    lora_rank: Positive | None = key(None, "Rank of low-rank adapters (LoRA); null: all weights are trained.")
    lora_alpha: Positive = key(32, "Scale of the adapters, divided by their rank.")
    sharding: Literal["none", "zero2", "zero3", "zero3-offload"] = key(
        "none", "Sharding by DeepSpeed; none: plain data parallelism.", published="zero2", name=""
    )
    precision: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "Number type of matrix products; auto: by the device.", published="bfloat16", name=""
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = key(
        "auto", "Attention implementation; auto: by the device."
    )
    device: str = key("auto", "auto, cpu, cuda, cuda:1 or mps.")
    engine: Literal["auto", "transformers", "vllm"] = key(
        "auto", "Engine of the rollouts; auto: vllm for large models on GPUs.", published="vllm", name=""
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of vLLM, such as tensor_parallel_size."
    )
    engine_place: Literal["colocated", "separate"] = key(
        "colocated", "vLLM in every training process, or one engine in a process of its own.", published=SAME, name=""
    )
    engine_gpus: tuple[Count, ...] = key((), "GPUs of a separate engine; nothing is trained on them.")
    processes: Positive | None = key(None, "World size that the batch was chosen for; another one is an error.")
    validate_every: Positive = key(50, "Iterations between validations.")
    validation_examples: Positive = key(64, "Examples of a validation, in all.", aliases=["validation_rows"])
    gallery_examples: Positive = key(9, "Prompts on each gallery page.", aliases=["gallery_rows"])
    keep_checkpoints: Positive = key(
        2, "Newest checkpoints that can be resumed; of older ones only models are kept.", aliases=["keep"]
    )
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = key((), "Trackers that get the log as well.")
    save_format: Literal["native", "original"] = key(
        "native", "Checkpoint format: native (transformers) or original (Emu3's own).", aliases=["save_layout"]
    )

    @property
    def mode(self) -> Mode:
        """The mode that the prefill stands for; the tokens are those of `SequenceLayout.prompt`, as in training."""
        return mode_of(self.assistant_prefill)

    @property
    def sampling(self) -> SamplingParams:
        """How rollouts are sampled."""
        return SamplingParams(**{each.name: getattr(self, each.name) for each in PARAMETERS})

    @property
    def quantize(self) -> Literal["none"]:
        """Weights are as they are."""
        return "none"

    @property
    def prompts_per_iteration(self) -> int:
        """Prompts sampled in an iteration, over all processes."""
        return self.episodes_per_iteration // self.generations_per_sample

    @property
    def folder(self) -> Path:
        """The run's folder."""
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
            raise ValueError("the run has no folder: give --output, or run_name and base_exp_dir")
        if not self.data and self.train_paths_file is None:
            raise ValueError("there is no data: give --data, or train_paths_file")
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
        """The settings that keep the prompts of an iteration with this world size; None if there are none."""
        if self.prompts_per_iteration % there:
            return None
        return f"--set processes={there} keeps the {self.prompts_per_iteration} prompts an iteration"

    def remarks(self, origins: Mapping[str, str]) -> list[str]:
        """Warnings about settings without effect, or with another one than expected.

        ``origins`` says where each comes from; those of options and --set are taken as intended.
        """
        meant = {key for key, origin in origins.items() if origin.startswith("--")}
        save, length = self.checkpoint_every, self.num_iterations
        validates = bool(self.validation or self.val_paths_file)
        found = []
        if save >= length:
            found.append(f"checkpoint_every {save}: the only checkpoint is that of the end, {length}")
        for name in ("keep_model_every", "push_to_hub_every_n_iterations"):
            every = getattr(self, name)
            both = math.lcm(every, save)
            if both != every and (name in meant or not name.startswith("push") or self.push_to_hub_repo_id):
                found.append(
                    f"{name} {every} is no multiple of checkpoint_every {save}: it happens every {both} iterations"
                )
        if validates and self.validate_every > length:
            found.append(f"validate_every {self.validate_every}: validated is at the start and at the end, {length}")
        if not validates and meant & {"validate_every", "validation_examples"}:
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
