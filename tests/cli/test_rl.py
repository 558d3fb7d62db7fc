"""``earl rl`` as a person types it: what is wrong is one message with an exit code, and what is right is trained."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pyarrow.parquet as pq
import pytest
import torch
from command_result import CommandResult, error_message, same_refusal
from trainings import options, write_pairs

from earl_cli.app import run
from earl_cli.data.store import Manifest, Reject, create_or_resume, write_shard
from earl_cli.files import LOCK_FILE
from earl_cli.models.bundle import load_model, open_base
from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints
from earl_cli.training.common.curves import read_runs
from earl_cli.training.rl.rollout_log import SCHEMA

OLD_CONFIG = Path(__file__).parents[1] / "config" / "old_configs" / "rl.json"
OLD_LOG = Path(__file__).parents[1] / "training" / "old_logs" / "rl.jsonl"
SMALL: dict[str, object] = {"num_iterations": 2, "episodes_per_iteration": 6, "generations_per_sample": 2}
SMALL |= {"max_response_tokens": 64, "max_length": 128, "learning_rate": 1e-3, "precision": "float32"}
SMALL |= {"log_episodes_every_n_iterations": 1, "gradient_checkpointing": "false", "batch_size": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("cli") / "store", 6)


@pytest.fixture
def rl(
    tiny_model_dir: Path,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., CommandResult]:
    """Runs ``earl rl`` with a model, data, a reward and an output folder unless others are given."""
    monkeypatch.delenv("APP__REWARD_FUNCTION_API_BASE", raising=False)

    def start(*args: object, **values: object) -> CommandResult:
        given = [str(arg) for arg in args]
        usual: dict[str, object] = {"--model": tiny_model_dir, "--data": store, "-o": tmp_path / "out"}
        usual |= {"--reward": "reference", "--device": "cpu"}
        usual = {flag: value for flag, value in usual.items() if flag not in given}
        defaults = [str(part) for pair in usual.items() for part in pair]
        code = run(["rl", *given, *defaults, *options(**{**SMALL, **values})])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return CommandResult(code, captured.out, captured.err)

    return start


# -- data that can't be used -----------------------------------------------------------------------------------------


def test_an_empty_store(rl: Callable[..., CommandResult], tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    create_or_resume(folder, Manifest(512, "vq", 1024, "set", 1, 1, None, {}, "data"))
    write_shard(folder, 0, [], [Reject(0, "p0", "image", "«torn»")])
    assert f"error: {folder}: there are no examples in this data" in error_message(rl("--data", folder), 3)


def test_a_store_of_another_codebook(rl: Callable[..., CommandResult], tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "other", 4, codes=32768)
    text = error_message(rl("--data", folder), 3)
    assert str(folder) in text
    assert "32768" in text
    assert "512" in text


@pytest.mark.parametrize("flag", ["--data", "--validation"])
def test_data_that_are_not_there(flag: str, rl: Callable[..., CommandResult], tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in error_message(rl(flag, tmp_path / "nowhere"), 3)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_more_prompts_than_there_are(more: tuple[str, ...], rl: Callable[..., CommandResult], tmp_path: Path) -> None:
    text = error_message(rl(*more, episodes_per_iteration=14), 2)
    assert "error: episodes_per_iteration: an iteration samples 7 prompts, but the data has only 6" in text
    assert "hint: at most 12 here" in text
    assert not (tmp_path / "out").exists()


def test_more_prompts_than_fit_into_the_context(rl: Callable[..., CommandResult]) -> None:
    """Every third image has 3 x 4 codes, the others fewer."""
    result = rl(max_length=50)
    text = error_message(result, 2)
    assert "an iteration samples 3 prompts, but the data has only 2" in text, result.err


# -- options and values that can't be used ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "values", "expected"),
    [
        ((), {"num_iteration": 3}, "did you mean 'num_iterations'"),
        ((), {"kl_coeff": -1}, "kl_coeff"),
        ((), {"episodes_per_iteration": 7}, "episodes_per_iteration 7 is no multiple of generations_per_sample 2"),
        ((), {"generations_per_sample": 1}, "generations_per_sample"),
        ((), {"sharding": "zero1"}, "sharding"),
        ((), {"lora_rank": 4, "sharding": "zero3"}, "use sharding none or zero2"),
        ((), {"assistant_prefill": "imagine"}, "'imagine' is neither a mode"),
        ((), {"max_response_tokens": 5}, "more than the 5 allowed"),
        ((), {"processes": 3}, "this config is for 3 processes, 1 run"),
        (("--coefficients", "1,2"), {}, "coefficients: 2 coefficients for 1 data sets"),
        (("--coefficients", "much"), {}, "coefficients"),
        (("--iterations", "0"), {}, "--iterations"),
        (("--config", "rl/sft_s__rl_x"), {}, "no such config file or recipe"),
        (("--reward", "beauty"), {}, "there is no reward 'beauty'"),
        (("--reward", "earl_cli.nowhere:beauty"), {}, "there is no module earl_cli.nowhere"),
        (("--reward", "earl_cli.rewards.reference:beauty"), {}, "the module has no function 'beauty'"),
        (("--reward", "viescore"), {}, "the reward viescore needs a judge, and no address is given"),
        (("--reward", "viescore", "--api-base", "localhost"), {}, "this is no address of a judge's server"),
        (("--reward", '{"reference": 1, "reference": 2}'), {}, "the key 'reference' is given twice"),
        (("--reward", '{"a":' * 5000 + "1" + "}" * 5000), {}, "nested too deeply"),
        (("--reward", '{"reference": 1'), {}, "reward: this is no JSON object of names and weights"),
        (("--reward", '{"reference": "much"}'), {}, "reward"),
        (("--reward", "{}"), {}, "a weighted reward needs at least one name"),
        (("--reward", '{"reference": NaN}'), {}, "the weight of reference is nan"),
        (("--reward", '{"beauty": 1}'), {}, "there is no reward 'beauty'"),
    ],
)
def test_wrong_values(
    args: tuple[str, ...], values: dict[str, object], expected: str, rl: Callable[..., CommandResult], tmp_path: Path
) -> None:
    assert expected in error_message(rl(*args, **values), 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "flag"), [(["-o", "out"], "--data"), (["--data", "store"], "--output"), ([], "--output")]
)
def test_missing_flags_are_named(args: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rl", *args]) == 2
    assert flag in capsys.readouterr().err


def test_a_reward_that_fails_is_one_message(
    rl: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_failing_reward.py").write_text("def score(edits):\n    return [edit.beauty for edit in edits]\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = error_message(rl("--reward", "my_failing_reward:score"), 2)
    assert "my_failing_reward:score: the reward function raised AttributeError" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "code", "expected"),
    [
        (None, 1, "nothing was learned, since no edit got a reward: the reward function gave none"),
        (math.nan, 1, "nothing was learned, since no edit got a reward: the reward function gave nan"),
        (0.5, 0, "warning: all edits of a prompt always got the same reward"),
    ],
)
def test_a_run_that_learned_nothing_reports_it_at_its_end(
    score: float | None,
    code: int,
    expected: str,
    rl: Callable[..., CommandResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"flat_reward_{score}".replace(".", "_")
    (tmp_path / f"{name}.py").write_text(f"nan = float('nan')\ndef score(edits): return [{score}] * len(edits)\n")
    done = rl("--reward", f"{name}:score", "--json", num_iterations=1)
    assert done.code == code
    assert expected in done.err
    assert ("error" in done.document) == bool(code)
    assert load_model(str(tmp_path / "out"))


def test_an_output_that_is_a_file(rl: Callable[..., CommandResult], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert str(tmp_path / "out") in error_message(rl(), 8)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_model_that_is_not_there(rl: Callable[..., CommandResult], tmp_path: Path) -> None:
    (tmp_path / "no model").mkdir()
    assert "an empty folder" in error_message(rl("--model", tmp_path / "no model"), 4)


@pytest.mark.slow
def test_weights_that_are_no_use_keep_the_last_checkpoint(rl: Callable[..., CommandResult], tmp_path: Path) -> None:
    every = {"checkpoint_every": 1}
    assert rl(**every).code == 0
    kept = [path.name for path in checkpoints(tmp_path / "out" / CHECKPOINTS)]
    assert kept == ["ckpt_000000", "ckpt_000001"]
    wild = {"num_iterations": 8, "learning_rate": 1e30, "checkpoint_every": 4}
    text = error_message(rl(**wild), 4)
    assert "error: the model's logits are not finite" in text
    assert [path.name for path in checkpoints(tmp_path / "out" / CHECKPOINTS)] == kept
    assert rl(num_iterations=3).code == 0
    assert load_model(str(tmp_path / "out"), device="cpu").language.lm_head.weight.isfinite().all()


# -- a plan ----------------------------------------------------------------------------------------------------------


def test_a_plan_trains_nothing(rl: Callable[..., CommandResult], tmp_path: Path, store: Path) -> None:
    both = ("--data", store, "--data", store, "--coefficients", "1,0.5")
    result = rl("--dry-run", "--json", *both, "--validation", store, validation_examples=4)
    assert result.code == 0, result.err
    plan = result.document
    assert [each["rows_in_the_mixture"] for each in plan["data"]] == [6, 3]
    assert (plan["prompts"], plan["skipped"], plan["validation_rows"], plan["iterations"]) == (9, 0, 4, 2)
    assert plan["mode"] == "edit"
    assert plan["origins"]["coefficients"] == "--coefficients"
    assert plan["origins"]["num_iterations"] == "--set"
    assert plan["memory"]["device"] > plan["memory"]["weights"] > 0
    assert not (tmp_path / "out").exists()


def test_a_plan_for_people(rl: Callable[..., CommandResult], store: Path) -> None:
    result = rl("--dry-run")
    assert result.code == 0, result.err
    assert "2 iterations of 3 prompts × 2 edits, 3 prompts in one process: each of 6 prompts 1 ×" in result.out
    assert "weights on 1 device, by calculation" in result.out
    for value in ("kl_coeff", "0.0003", str(store), "float32"):
        assert value in result.out


def test_the_plan_says_what_vllm_takes(
    rl: Callable[..., CommandResult], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = 4 * open_base(str(tiny_model_dir)).parameters
    two = {"engine": "vllm", "engine_args": '{"tensor-parallel-size": 2}', "vllm_gpu_memory_utilization": 0.4}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    usual, unknown = (rl("--dry-run", "--json", "--device", "auto", **each) for each in ({}, two))
    assert "vllm" not in usual.document["memory"]
    assert unknown.document["memory"] == {**usual.document["memory"], "vllm": weights // 2}
    assert "vllm" not in rl("--dry-run", "--json", "--device", "cpu", **two).document["memory"]
    apart = {**two, "engine_place": "separate"}
    assert "vllm" not in rl("--dry-run", "--json", "--device", "auto", **apart).document["memory"]
    text = rl("--dry-run", "--device", "auto", **two).out
    assert "vLLM while it samples: at least its weights, 40% of a GPU" in text

    gpu = SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    assert rl("--dry-run", "--json", "--device", "cuda:0", **two).document["memory"]["vllm"] == 32_000_000_000
    own = {**two, "engine_args": '{"gpu_memory_utilization": 0.25}'}
    assert rl("--dry-run", "--json", "--device", "cuda:0", **own).document["memory"]["vllm"] == 20_000_000_000
    text = rl("--dry-run", "--device", "cuda:0", **two).out
    assert "vLLM while it samples: 40% of a GPU" in text
    assert "32.00" in text


def test_the_plan_of_a_published_run(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "data/omniedit/train", 20)
    named = {"DATA_DIR": tmp_path / "data", "BASE_EXP_DIR": tmp_path / "runs", "RUN_NAME": "mine"}
    for name, value in {**named, "REWARD_FUNCTION_API_BASE": "http://judge:4877/v1"}.items():
        monkeypatch.setenv(f"APP__{name}", str(value))
    command = ["rl", "--config", "rl/sft_s__rl_s", "--model", str(tiny_model_dir), "--device", "cpu", "--dry-run"]
    command += options(tokenizer_path="null")
    assert run([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["iterations"], plan["prompts"], plan["mode"]) == (3000, 20, "edit")
    assert plan["config"]["data"] == [str(tmp_path / "data/omniedit/train")]
    assert plan["config"]["reward_function_api_base"] == "http://judge:4877/v1"
    assert plan["origins"]["kl_coeff"] == "rl/sft_s__rl_s"
    monkeypatch.delenv("APP__DATA_DIR")
    assert run(command) == 2
    assert "the environment variable APP__DATA_DIR (rl.libsonnet:6:12) is not set" in capsys.readouterr().err


# -- what the run would refuse, the plan refuses ---------------------------------------------------------------------

AT_WORK: list[IO[str]] = []
"""Locks that this test holds."""


def nothing(_: Path) -> None:
    pass


def file_in_the_way(out: Path) -> None:
    out.write_text("mine")


def run_of_sft(out: Path) -> None:
    (out / CHECKPOINTS / "checkpoint-3").mkdir(parents=True)
    (out / CHECKPOINTS / "checkpoint-3/complete").touch()


def training_at_work(out: Path) -> None:
    (out / CHECKPOINTS).mkdir(parents=True)
    lock = (out / CHECKPOINTS / LOCK_FILE).open("w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    AT_WORK.append(lock)


def run_with_adapters(out: Path) -> None:
    (out / CHECKPOINTS / "ckpt_000003").mkdir(parents=True)
    (out / CHECKPOINTS / "ckpt_000003/complete").touch()
    way = {"sharding": "none", "processes": "any", "lora_rank": 8}
    (out / CHECKPOINTS / "ckpt_000003/run.json").write_text(json.dumps({"iteration": 3, "way": way}))


@pytest.mark.parametrize(
    ("prepare", "args", "values", "code", "expected"),
    [
        (nothing, ("--data", "nowhere"), {}, 3, "nowhere"),
        (nothing, ("--model", "org/nowhere at all"), {}, 4, "nowhere at all"),
        (nothing, (), {"processes": 3}, 2, "this config is for 3 processes, 1 run"),
        (nothing, (), {"attention": "flash_attention_2"}, 5, "--set attention=sdpa"),
        (nothing, (), {"engine_args": '{"dtype": "half"}', "engine": "transformers"}, 2, "only the engine vllm takes"),
        (nothing, ("--reward", "viescore"), {}, 2, "the reward viescore needs a judge"),
        (nothing, ("--reward", "beauty"), {}, 2, "there is no reward 'beauty'"),
        (training_at_work, (), {}, 8, "another training is at work here"),
        (file_in_the_way, (), {}, 8, "this is a file, not a folder for the model"),
        (run_of_sft, (), {}, 2, "this folder holds a run of earl sft"),
        (run_with_adapters, (), {}, 2, "this run was started with sharding none, processes any, lora_rank 8"),
    ],
)
def test_the_plan_refuses_what_the_run_refuses_in_the_same_words(
    prepare: Callable[[Path], None],
    args: tuple[str, ...],
    values: dict[str, object],
    code: int,
    expected: str,
    rl: Callable[..., CommandResult],
    tmp_path: Path,
) -> None:
    prepare(tmp_path / "out")
    assert expected in same_refusal(rl, *args, code=code, **values)
    AT_WORK.clear()


def test_the_plan_refuses_for_want_of_memory_and_disk(
    rl: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("earl_cli.training.common.memory.shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        text = error_message(rl("--dry-run"), 8)
        assert (
            "the run needs up to 12.3 MB: 1 complete checkpoint of 7.19 MB, 1 model of 5.11 MB; 1 MB are free" in text
        )
        assert text[text.index("error: ") :] in error_message(rl(), 8)
    monkeypatch.setattr("earl_cli.models.device.free_memory", lambda _: 1000)
    text = error_message(rl("--dry-run"), 5)
    assert text[text.index("error: ") :] in error_message(rl(), 5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"checkpoint_every": 5}, "the only checkpoint is that of the end, 2"),
        (
            {"checkpoint_every": 20, "keep_model_every": 30},
            "keep_model_every 30 is no multiple of checkpoint_every 20: it happens every 60 iterations",
        ),
        ({"validate_every": 2}, "without validation data nothing is validated"),
        ({"clip_high": 0.28}, "clip_low and clip_high have no effect with updates_per_iteration 1"),
        ({"lora_alpha": 4}, "lora_alpha has no effect without lora_rank"),
        ({"train_text_tokens_only": "true"}, "in the mode edit no text is sampled"),
    ],
)
def test_settings_without_effect_are_named(
    values: dict[str, object], expected: str, rl: Callable[..., CommandResult]
) -> None:
    result = rl("--dry-run", **values)
    assert result.code == 0, result.err
    assert expected in result.err


def test_validation_prompts_that_are_too_long_are_counted(rl: Callable[..., CommandResult], store: Path) -> None:
    result = rl("--dry-run", "--validation", store, max_length=50, episodes_per_iteration=4)
    assert result.code == 0, result.err
    assert "warning: 4 validation prompts have too many tokens and are left out" in result.err


# -- what a run leaves -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rollouts_galleries_log_and_model(
    rl: Callable[..., CommandResult],
    tmp_path: Path,
    store: Path,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = rl("--validation", store, "--json", validation_examples=3, gallery_examples=3, validate_every=1)
    assert result.code == 0, result.err
    output = tmp_path / "out"
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    held = "validation/reward/mean"
    rewards = {line["step"]: line[held] for line in log if held in line}
    step = max((each for each in rewards if each), key=lambda each: (rewards[each], -each))
    best = {"iteration": step, "validation_reward": rewards[step]}
    assert result.document == {"model": str(output), "iterations": 2, "resumed_from": 0, "best": best}
    assert (output / "best").resolve() == output / CHECKPOINTS / f"ckpt_{step - 1:06d}" / "hf_model"
    assert load_model(str(output / "best"), device="cpu").image_area == 32 * 32
    for step in (1, 2):
        table = pq.read_table(output / f"episodes/step-{step:06d}.parquet")
        assert table.schema.equals(SCHEMA)
        rows = table.to_pylist()
        assert len(rows) == 6
        assert len({row["seed"] for row in rows}) == 6
        assert [row["id"] for row in rows[::2]] == [row["id"] for row in rows[1::2]]
        for row in rows:
            assert (row["step"], row["instruction"], row["finished"]) == (step, "make it snowy", True)
            assert -1 <= row["reward"] <= 1
            assert dict(row["parts"]).keys() == {"removed", "colour", "structure"}
            assert row["logprob"] < 0 < len(row["tokens"])
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            assert first["advantage"] == pytest.approx(-second["advantage"], abs=1e-9)
            assert (first["advantage"] > 0) == (first["reward"] > second["reward"])
    pages = sorted(path.name for path in (output / "galleries").iterdir())
    steps = ["step-000001.html", "step-000002.html"]
    assert pages == [*steps, *(f"validation-{step:06d}.html" for step in range(3))]
    assert (output / "galleries/step-000001.html").read_text(encoding="utf-8").count("<img") >= 9
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 1, 2, 2]
    assert [("reward/mean" in line, held in line) for line in log] == [
        (False, True),
        (True, False),
        (False, True),
        (True, False),
        (False, True),
    ]
    rewards = [row["reward"] for row in pq.read_table(output / "episodes/step-000001.parquet").to_pylist()]
    assert log[1]["reward/mean"] == pytest.approx(sum(rewards) / len(rewards))
    assert load_model(str(output), device="cpu").image_area == 32 * 32
    (output / "log.jsonl").write_bytes(OLD_LOG.read_bytes())  # as if version 0.1.0 had started the run
    config = {  # as an older version showed it, whose names of keys were others
        **json.loads(OLD_CONFIG.read_text()),
        **{name: int(value) for name, value in SMALL.items() if isinstance(value, int)},
        **{"model_path": str(tiny_model_dir), "data": [str(store)], "validation": [str(store)], "output": str(output)},
        **{"reward": "reference", "device": "cpu", "precision": "float32", "validate_every": 1, "num_iterations": 3},
    }
    config |= {"per_device_batch_size": config.pop("batch_size"), "model_context_size": config.pop("max_length")}
    (output / "config.json").write_text(json.dumps(config))
    code = run(["rl", "-c", str(output / "config.json"), "--json"])
    again = CommandResult(code, *capsys.readouterr())
    assert again.code == 0, again.err
    assert again.document["resumed_from"] == 2
    (curves,) = read_runs([output])
    assert curves.metrics["reward/mean"].steps.tolist() == [1, 2, 3]
    assert curves.metrics[held].steps.tolist() == [0, 1, 2, 3]
    added = (output / "log.jsonl").read_text().removeprefix(OLD_LOG.read_text()).splitlines()
    assert [json.loads(line)["step"] for line in added] == [3, 3]  # the validation after step 2 isn't repeated


def test_rewards_of_ones_own_and_sums(
    rl: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_bright_reward.py").write_text(
        "def score(edits):\n    return [None if e.edited is None else e.edited.mean() / 255 for e in edits]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = rl("--reward", '{"reference": 1, "my_bright_reward:score": 0.5}', num_iterations=1)
    assert result.code == 0, result.err
    for row in pq.read_table(tmp_path / "out/episodes/step-000001.parquet").to_pylist():
        parts = dict(row["parts"])
        assert row["reward"] == pytest.approx(parts["reference"] + 0.5 * parts["my_bright_reward:score"])
