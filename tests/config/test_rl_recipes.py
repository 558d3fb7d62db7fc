"""The published runs of reinforcement learning, by what the paper's own configs say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from earl_cli.config.loader import load_config, read_paths, recipes
from earl_cli.config.rl import RlConfig
from earl_cli.errors import UsageError

JUDGE = "http://judge:4877/v1"
OMNIEDIT = ("omniedit",)
COMPLEX = ("magic_brush", "aurora_ag", "aurora_kubric", "ss2", "vismin", "human-edit")
SIX = (6.0, 6.0, 0.7, 1.55, 3.7, 11.0)
SIMPLE = "mair-lab/sft-simple"
THINKING = "mair-lab/thinking-sft-simple"
MIXED = "Image-Editing/Emu3-Base-SFT-without_cot-May06_mixed_gc_lr1e-4-checkpoint-4800"
TWO_STAGES = "Image-Editing/Emu3-Base-SFT-without_cot-May07_mixed_gc_post_lr1e-4-checkpoint-1200"
RUNS = {
    "sft_s__rl_s": (SIMPLE, "edit", OMNIEDIT, (1.0,), 3000, 4096, 4),
    "sft_s__rl_c": (SIMPLE, "edit", COMPLEX, SIX, 3000, 4096, 4),
    "sft_s__rl_sc": (SIMPLE, "edit", OMNIEDIT + COMPLEX, (0.13, *SIX), 3000, 4096, 4),
    "sft_think_s__rl_s": (THINKING, "reasoning", OMNIEDIT, (1.0,), 3000, 4096, 4),
    "sft_think_s__rl_c": (THINKING, "reasoning", COMPLEX, SIX, 3000, 4096, 4),
    "sft_think_s__rl_sc": (THINKING, "reasoning", OMNIEDIT + COMPLEX, (0.13, *SIX), 3000, 4096, 4),
    "sft_sc__rl_c": (MIXED, "edit", COMPLEX, (1.0,) * 6, 2000, 3000, 8),
    "sft_sc__rl_sc": (MIXED, "edit", OMNIEDIT + COMPLEX, (1.0,) * 7, 2000, 3000, 8),
    "sft_sc2stage__rl_c": (TWO_STAGES, "edit", COMPLEX, (1.0,) * 6, 2000, 3000, 8),
    "sft_sc2stage__rl_sc": (TWO_STAGES, "edit", OMNIEDIT + COMPLEX, (1.0,) * 7, 2000, 3000, 8),
}
VARIABLES = {
    "APP__DATA_DIR": "/data",
    "APP__RL_100K_DIR": "/data/emu3_tokenized_rl_100k",
    "APP__BASE_EXP_DIR": "/runs",
    "APP__REWARD_FUNCTION_API_BASE": JUDGE,
    "APP__RUN_NAME": "mine",
}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def test_there_are_the_ten_runs() -> None:
    assert [name for name in recipes() if name.startswith("rl/")] == sorted(f"rl/{name}" for name in RUNS)


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_published_one(name: str) -> None:
    config = load_config(RlConfig, f"rl/{name}")
    model, mode, sets, coefficients, iterations, context, batch = RUNS[name]
    assert (config.model, config.mode) == (model, mode)
    place = "/data/emu3_tokenized_rl_100k" if model in (MIXED, TWO_STAGES) else "/data"
    assert config.data == tuple(Path(place, folder, "train") for folder in sets)
    assert config.coefficients == coefficients
    assert (config.num_iterations, config.max_length, config.batch_size) == (
        iterations,
        context,
        batch,
    )
    assert (config.episodes_per_iteration, config.generations_per_sample, config.prompts_per_iteration) == (128, 8, 16)
    assert (config.kl_coeff, config.temperature, config.top_p, config.top_k) == (0.0003, 1.0, 1.0, -1)
    assert (config.max_response_tokens, config.vllm_gpu_memory_utilization, config.seed) == (2048, 0.3, 42)
    assert config.emu3_use_logit_processor
    assert config.overlong == "zero"
    assert config.separate_vocabularies
    assert not config.train_text_tokens_only
    assert not config.train_vision_tokens_only
    assert (config.learning_rate, config.betas, config.epsilon) == (3e-6, (0.9, 0.999), 1e-8)
    assert (config.weight_decay, config.max_grad_norm, config.warmup_iterations, config.updates_per_iteration) == (
        0,
        1,
        0,
        1,
    )
    assert (config.advantage_over_std, config.entropy_coeff, config.lora_rank) == (True, 0, None)
    assert (config.reward, config.reward_final_reward) == (None, "viescore")
    assert (config.reward_compute_viescore, config.reward_compute_ground_score) == (True, False)
    assert config.reward_function_api_base == JUDGE
    assert config.reward_function_api_model_name == "Qwen/Qwen2.5-VL-72B-Instruct"
    assert config.log_episodes_every_n_iterations == 5
    assert config.checkpoint_every == 100
    assert config.keep_model_every == 100
    assert (config.push_to_hub_every_n_iterations, config.push_to_hub_repo_id) == (100, None)
    assert (config.precision, config.sharding, config.gradient_checkpointing) == ("bfloat16", "zero2", True)
    assert config.folder == Path("/runs/mine")


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.usefixtures("variables")
def test_a_run_says_which_variable_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(UsageError, match=rf"{name} \(.*libsonnet:\d+:\d+\) is not set .*export {name}="):
        load_config(RlConfig, "rl/sft_sc__rl_sc" if name == "APP__RL_100K_DIR" else "rl/sft_s__rl_sc")


@pytest.mark.usefixtures("variables")
def test_other_data_in_place_of_a_recipe_s(tmp_path: Path) -> None:
    (tmp_path / "sets.json").write_text('["a", "b"]')
    sets = ["data=[]", f"train_paths_file={tmp_path / 'sets.json'}", "coefficients=[2, 0.5]"]
    config = load_config(RlConfig, "rl/sft_s__rl_sc", sets)
    assert read_paths(config.train_paths_file) == (tmp_path / "a", tmp_path / "b")
    assert (config.data, config.coefficients) == ((), (2.0, 0.5))
    with pytest.raises(UsageError, match=r"exclude each other: data=\[\]"):
        load_config(RlConfig, "rl/sft_s__rl_sc", sets[1:])


def test_the_embedded_recipe_needs_data_and_a_place_only() -> None:
    config = load_config(RlConfig, "embedded/rl", given={"data": ["store"], "output": "out"})
    assert (config.model, config.mode, config.reward) == (None, "edit", "reference")


PUBLISHED = """
{
  train_paths_file: [
    std.extVar('APP__DATA_DIR') + '/omniedit/train/list/tokenized_datalist.json',
    std.extVar('APP__DATA_DIR') + '/vismin/train/list/tokenized_datalist.json',
  ],
  coefficients: [0.13, 3.7],
  val_paths_file: [],
  val_coefficients: [],
  base_exp_dir: std.extVar('APP__BASE_EXP_DIR'),
  model: 'mair-lab/thinking-sft-simple',
  model_revision: 'ckpt_001999',
  tokenizer_path: 'BAAI/Emu3-Gen',
  assistant_prefill: "Let's think step by step. <|start thinking|>\\\\n",
  learning_rate: 3e-6,
  num_iterations: 2000,
  kl_coeff: 0.0003,
  temperature: 1.0,
  batch_size: 4,
  episodes_per_iteration: 128,
  generations_per_sample: 8,
  max_response_tokens: 2048,
  top_p: 1.0,
  top_k: -1,
  vllm_gpu_memory_utilization: 0.3,
  max_length: 4096,
  seed: 42,
  emu3_use_logit_processor: true,
  separate_vocabularies: true,
  train_text_tokens_only: true,
  text_only_cycle_steps: 10,
  text_only_steps: 7,
  train_vision_tokens_only: false,
  vision_only_cycle_steps: 10,
  vision_only_steps: 10,
  reward_function_api_base: std.extVar('APP__REWARD_FUNCTION_API_BASE'),
  reward_function_api_model_name: 'Qwen/Qwen2.5-VL-72B-Instruct',
  reward_compute_viescore: true,
  reward_compute_ground_score: true,
  reward_final_reward: 'sqrt(viescore_pqxground_score)',
  run_name: std.extVar('APP__RUN_NAME'),
  log_episodes_every_n_iterations: 5,
  keep_model_every: 100,
  checkpoint_every: 100,
  push_to_hub_every_n_iterations: 100,
  push_to_hub_repo_id: 'somebody/' + $.run_name,
}
"""


@pytest.mark.usefixtures("variables")
def test_a_file_in_the_published_form_loads(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonnet"
    path.write_text(PUBLISHED)
    config = load_config(RlConfig, str(path))
    lists = tuple(Path("/data", name, "train/list/tokenized_datalist.json") for name in ("omniedit", "vismin"))
    assert (read_paths(config.train_paths_file), config.coefficients) == (lists, (0.13, 3.7))
    assert (config.val_paths_file, config.val_coefficients) == (None, None)
    assert (config.mode, config.text_only_steps, config.folder) == ("reasoning", 7, Path("/runs/mine"))
    assert config.push_to_hub_repo_id == "somebody/mine"


@pytest.mark.usefixtures("variables")
@pytest.mark.parametrize(
    ("right", "wrong", "near"),
    [
        ("vllm_gpu_memory_utilization", "vlm_spm_memory_utilization", "vllm_gpu_memory_utilization"),
        ("emu3_use_logit_processor", "emu3_use_logits_processor", "emu3_use_logit_processor"),
        ("APP__RUN_NAME", "APP_RUN_NAME", "APP__RUN_NAME"),
        ("APP__DATA_DIR", "APP_DATA_DIR", "APP__DATA_DIR"),
        ("APP__REWARD_FUNCTION_API_BASE", "APP_REWARD_FUNCTION_API_BASE", "APP__REWARD_FUNCTION_API_BASE"),
    ],
)
def test_what_the_published_files_misspell_is_explained(tmp_path: Path, right: str, wrong: str, near: str) -> None:
    path = tmp_path / "run.jsonnet"
    path.write_text(PUBLISHED.replace(right, wrong))
    with pytest.raises(UsageError, match=f"did you mean '{near}'"):
        load_config(RlConfig, str(path))
