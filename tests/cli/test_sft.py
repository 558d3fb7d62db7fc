"""``earl sft`` as a person types it: what is wrong is one message with an exit code, and what is right is trained."""

from __future__ import annotations

import fcntl
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch
from command_result import CommandResult, error_message, same_refusal
from trainings import options, write_pairs

from earl_cli.app import run
from earl_cli.data.store import Manifest, Reject, create_or_resume, write_shard
from earl_cli.files import LOCK_FILE
from earl_cli.models import names
from earl_cli.models.bundle import load_model
from earl_cli.models.checkpoint import load_language
from earl_cli.training.common.checkpoints import CHECKPOINTS, checkpoints

SMALL = {"max_steps": 4, "batch_size": 2, "accumulation": 1, "warmup_steps": 1, "learning_rate": 3e-3}
MORE = {"precision": "float32", "log_every": 1, "gradient_checkpointing": "false"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("cli") / "store", 12)


@pytest.fixture
def sft(
    tiny_model_dir: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CommandResult]:
    """Runs ``earl sft`` with a model, data and an output folder unless others are given."""

    def start(*args: object, **values: object) -> CommandResult:
        given = [str(arg) for arg in args]
        usual: dict[str, object] = {"--model": tiny_model_dir, "--data": store, "-o": tmp_path / "out"}
        usual = {flag: value for flag, value in usual.items() if flag not in given}
        defaults = [str(part) for pair in usual.items() for part in pair]
        code = run(["sft", *given, *defaults, "--device", "cpu", *options(**{**SMALL, **MORE, **values})])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return CommandResult(code, captured.out, captured.err)

    return start


# -- data that can't be trained on -----------------------------------------------------------------------------------


def test_an_empty_store(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    create_or_resume(folder, Manifest(512, "vq", 1024, "set", 1, 1, None, {}, "data"))
    write_shard(folder, 0, [], [Reject(0, "p0", "image", "«torn»")])
    text = error_message(sft("--data", folder), 3)
    assert f"error: {folder}: there are no examples in this data" in text


def test_an_unfinished_store(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    create_or_resume(folder, Manifest(512, "vq", 1024, "set", 20, 3, None, {}, "data"))
    write_shard(folder, 1, [], [])
    text = error_message(sft("--data", folder), 3)
    assert "this store is incomplete: 2 of 3 shards are missing" in text
    assert "hint: run the same earl tokenize again" in text


def test_a_store_of_another_codebook(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "other", 4, codes=32768)
    text = error_message(sft("--data", folder), 3)
    assert str(folder) in text
    assert "32768" in text
    assert "512" in text


@pytest.mark.parametrize("flag", ["--data", "--validation"])
def test_data_that_are_not_there(flag: str, sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    text = error_message(sft(flag, tmp_path / "nowhere"), 3)
    assert str(tmp_path / "nowhere") in text


def test_a_chain_of_thought_that_no_row_has(sft: Callable[..., CommandResult], store: Path) -> None:
    text = error_message(sft("--cot-keys", "plan,boxes"), 3)
    assert f"error: {store}: no row has a chain of thought 'boxes'" in text
    assert "hint: the CoT keys are plan" in text


# -- sequences that are too long -------------------------------------------------------------------------------------


def test_too_long_sequences_are_trained_on_and_counted(sft: Callable[..., CommandResult]) -> None:
    result = sft("--max-length", 52, "--json", max_steps=1)  # every third example has 3 x 4 codes, the others fewer
    assert result.code == 0, result.err
    assert result.document["skipped"] == 0
    assert "warning: 4 examples have more than 52 tokens, up to 57, and are trained on as they are" in result.err


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_too_long_sequences_are_refused_with_too_long_stop(
    more: tuple[str, ...], sft: Callable[..., CommandResult], store: Path, tmp_path: Path
) -> None:
    text = error_message(sft("--max-length", 52, *more, too_long="stop"), 3)
    assert f"error: {store}: 4 of 12 sequences are longer than 52 tokens: the first is '0-2', the longest has" in text
    assert "--set too_long=skip, or train on them as they are: --set too_long=keep" in text
    assert not (tmp_path / "out").exists()


def test_beyond_the_model_s_positions_nothing_is_kept(
    sft: Callable[..., CommandResult], tiny_model_dir: Path, tmp_path: Path
) -> None:
    small = shutil.copytree(tiny_model_dir, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 52}))
    text = error_message(sft("--model", small), 3)
    assert "4 of 12 sequences are longer than the model's 52 positions: the first is '0-2'" in text
    assert "too_long=skip" in text
    assert "too_long=keep" not in text


def test_too_long_sequences_are_left_out_with_too_long_skip(sft: Callable[..., CommandResult], store: Path) -> None:
    result = sft("--max-length", 52, "--json", "--validation", store, too_long="skip", max_steps=1)
    assert result.code == 0, result.err
    assert result.document["skipped"] == 4
    assert "warning: 4 examples have more than 52 tokens and are left out" in result.err
    assert "warning: 4 validation examples have too many tokens and are left out" in result.err


def test_if_all_are_too_long_none_is_left_out(sft: Callable[..., CommandResult]) -> None:
    assert "12 of 12 sequences are longer than 5 tokens" in error_message(sft("--max-length", 5, too_long="skip"), 3)


@pytest.mark.slow
def test_if_all_of_a_sample_are_too_long_none_is_left_out(sft: Callable[..., CommandResult]) -> None:
    """Of the two examples that a seed chooses, both are among the long ones now and then."""
    for seed in range(100):
        result = sft("--max-length", 47, "--coefficients", "0.17", too_long="skip", seed=seed, max_steps=1)
        if result.code:
            assert "8 of 12 sequences are longer than 47 tokens" in error_message(result, 3)
            return
    raise AssertionError("no seed had only long ones")


def test_a_length_beyond_the_models(sft: Callable[..., CommandResult]) -> None:
    text = error_message(sft("--max-length", 5000), 2)
    assert "max_length is 5000, but the model has only 4096 positions" in text
    assert "hint: --max-length 4096" in text


# -- options and values that can't be used ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "values", "expected"),
    [
        ((), {"epoch": 3}, "did you mean 'epochs'"),
        ((), {"learning-rate": 3}, "did you mean 'learning_rate'"),
        ((), {"batch_size": 0}, "batch_size"),
        ((), {"sharding": "zero1"}, "sharding"),
        ((), {"betas": "[0.9]"}, "betas"),
        (("--coefficients", "1,2"), {}, "2 coefficients for 1 data sets"),
        (("--coefficients", "much"), {}, "coefficients"),
        (("--coefficients", "0.01"), {}, "the coefficients leave no example"),
        ((), {"quantize": "4bit"}, "set lora_rank as well"),
        ((), {"lora_rank": 4, "sharding": "zero3"}, "use sharding none or zero2"),
        (("--save-format", "both"), {}, "save_format"),
        (("--config", "sft/simpel"), {}, "no such config file or recipe"),
        (("--set", "epochs"), {}, "not of the form key=value"),
        ((), {"processes": 4}, "this config is for 4 processes, 1 run"),
        ((), {"keep_checkpoints": 0}, "keep_checkpoints: Input should be greater than 0"),
        ((), {"keep_checkpoints": -1}, "keep_checkpoints: Input should be greater than 0"),
        ((), {"checkpoint_every": 0}, "checkpoint_every: Input should be greater than 0"),
        ((), {"validate_every": 0}, "validate_every: Input should be greater than 0"),
        ((), {"min_learning_rate": 0.1}, "the rate would rise to the end"),
        ((), {"too_long": "error"}, "too_long: Input should be 'keep', 'skip' or 'stop'"),
    ],
)
def test_wrong_values(
    args: tuple[str, ...], values: dict[str, object], expected: str, sft: Callable[..., CommandResult], tmp_path: Path
) -> None:
    assert expected in error_message(sft(*args, **values), 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "flag"), [(["-o", "out"], "--data"), (["--data", "store"], "--output"), ([], "--data")]
)
def test_missing_flags_are_named(args: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sft", *args]) == 2
    assert f"give {flag}" in capsys.readouterr().err


def test_a_model_that_is_not_there(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    (tmp_path / "no model").mkdir()
    assert "an empty folder" in error_message(sft("--model", tmp_path / "no model"), 4)


def test_four_bits_need_a_gpu(sft: Callable[..., CommandResult]) -> None:
    assert "4-bit weights need an NVIDIA GPU" in error_message(sft(quantize="4bit", lora_rank=4), 5)


def test_an_output_that_is_a_file(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert str(tmp_path / "out") in error_message(sft(), 8)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_tracker_that_is_not_installed(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    missing = [name for name in ("wandb", "trackio") if find_spec(name) is None]
    if not missing:
        pytest.skip("every tracker is installed")
    text = error_message(sft(trackers=json.dumps(["tensorboard", missing[0]])), 6)
    assert f"the tracker {missing[0]} isn't installed" in text
    assert not (tmp_path / "out").exists()


# -- a loss that is not finite ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_rows_and_keeps_the_last_good_checkpoint(
    sft: Callable[..., CommandResult], tmp_path: Path
) -> None:
    fine = sft(checkpoint_every=2)
    assert fine.code == 0
    kept = [path.name for path in checkpoints(tmp_path / "out" / CHECKPOINTS)]
    assert kept == ["checkpoint-2", "checkpoint-4"]
    for every, what in ((1, "the gradient norm is (nan|inf)"), (100, "a weight is not finite")):
        wild = sft(checkpoint_every=2, max_steps=8, learning_rate=1e30, max_grad_norm=1e30, log_every=every)
        assert re.search(rf"error: .*{what} .* step \d, of the rows '0-\d+', '0-\d+'\nhint:", error_message(wild, 1)), (
            wild.err
        )
        assert "the last checkpoint is kept" in wild.err
        assert [path.name for path in checkpoints(tmp_path / "out" / CHECKPOINTS)] == kept
    wild = sft(checkpoint_every=100, max_steps=8, learning_rate=1e30, max_grad_norm=1e30, log_every=100)
    assert re.search(r"the loss is nan after step 6, in the batch of the rows '0-\d+', '0-\d+'", error_message(wild, 1))
    assert load_model(str(tmp_path / "out"), device="cpu").language.lm_head.weight.isfinite().all()
    again = sft("--json", checkpoint_every=2, max_steps=8)
    assert again.code == 0, again.err
    assert again.document["resumed_from"] == 4


# -- what the run would refuse, the plan refuses ---------------------------------------------------------------------

AT_WORK: list[IO[str]] = []
"""Locks that this test holds."""


def file_in_the_way(out: Path) -> None:
    out.write_text("mine")


def run_of_rl(out: Path) -> None:
    """Whole by its mark, as any version has left it."""
    (out / CHECKPOINTS / "ckpt_000003").mkdir(parents=True)
    (out / CHECKPOINTS / "ckpt_000003/complete").touch()


def run_of_another_model(out: Path) -> None:
    (out / CHECKPOINTS / "checkpoint-3").mkdir(parents=True)
    (out / CHECKPOINTS / "checkpoint-3/complete").touch()
    (out / "begun.json").write_text('{"command": "sft", "model": "ORG/other", "data": []}')


def training_at_work(out: Path) -> None:
    (out / CHECKPOINTS).mkdir(parents=True)
    lock = (out / CHECKPOINTS / LOCK_FILE).open("w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    AT_WORK.append(lock)


def run_with_adapters(out: Path) -> None:
    (out / CHECKPOINTS / "checkpoint-3/adapter").mkdir(parents=True)
    (out / CHECKPOINTS / "checkpoint-3/complete").touch()
    (out / CHECKPOINTS / "checkpoint-3/adapter/adapter_model.safetensors").touch()


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "args", "values", "code", "expected"),
    [
        (nothing, ("--data", "nowhere"), {}, 3, "nowhere"),
        (nothing, ("--model", "org/nowhere at all"), {}, 4, "nowhere at all"),
        (nothing, (), {"processes": 4}, 2, "this config is for 4 processes, 1 run"),
        (nothing, (), {"device": "cuda"}, 5, "cuda"),
        (nothing, (), {"quantize": "4bit", "lora_rank": 4}, 5, "4-bit weights need an NVIDIA GPU"),
        (nothing, (), {"attention": "flash_attention_2"}, 5, "--set attention=sdpa"),
        (training_at_work, (), {}, 8, "another training is at work here"),
        (file_in_the_way, (), {}, 8, "this is a file, not a folder for the model"),
        (run_of_rl, (), {}, 2, "this folder holds a run of earl rl"),
        (run_of_another_model, (), {}, 2, "this folder holds a run that started from ORG/other, not from"),
        (run_with_adapters, (), {}, 2, "this run was started with adapters trained, sharding none"),
    ],
)
def test_the_plan_refuses_what_the_run_refuses_in_the_same_words(
    prepare: Callable[[Path], None],
    args: tuple[str, ...],
    values: dict[str, object],
    code: int,
    expected: str,
    sft: Callable[..., CommandResult],
    tmp_path: Path,
) -> None:
    if values.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    prepare(tmp_path / "out")
    assert expected in same_refusal(sft, *args, code=code, **values)
    AT_WORK.clear()


def test_the_plan_refuses_for_want_of_memory_and_disk(
    sft: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("earl_cli.training.common.memory.shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        text = error_message(sft("--dry-run"), 8)
        assert (
            "the run needs up to 11.6 MB: 1 complete checkpoint of 6.49 MB, 1 model of 5.11 MB; 1 MB are free" in text
        )
        assert text[text.index("error: ") :] in error_message(sft(), 8)
    monkeypatch.setattr("earl_cli.models.device.free_memory", lambda _: 1000)
    text = error_message(sft("--dry-run"), 5)
    assert "the model needs" in text
    assert text[text.index("error: ") :] in error_message(sft(), 5)
    assert not (tmp_path / "out").exists()


def test_a_plan_that_refuses_is_still_one_document(sft: Callable[..., CommandResult]) -> None:
    result = sft("--dry-run", "--json", processes=4)
    assert result.code == 2
    assert result.document["steps"] == 4
    assert result.document["error"]["what"] == "this config is for 4 processes, 1 run"


# -- settings that come out otherwise than one may think -------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"checkpoint_every": 5}, "checkpoint_every 5: the only checkpoint is that of the end, 4"),
        ({"validate_every": 2}, "without validation data nothing is validated"),
        ({"warmup_steps": 4}, "warmup_steps 4: the learning rate is still rising at the end, 4"),
        ({"epochs": 3}, "max_steps 4 decides the length, and epochs 3 has no effect"),
        ({"lora_dropout": 0.1}, "lora_alpha and lora_dropout have no effect without lora_rank"),
    ],
)
def test_settings_without_effect_are_named(
    values: dict[str, object], expected: str, sft: Callable[..., CommandResult]
) -> None:
    result = sft("--dry-run", **values)
    assert result.code == 0
    assert f"warning: {expected}" in result.err


# -- what is right ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_original_layout_loads_back(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    assert sft("-o", tmp_path / "native").code == 0
    assert sft("-o", tmp_path / "original", "--save-format", "original").code == 0
    stored = json.loads((tmp_path / "original" / "config.json").read_text())
    assert (stored["model_type"], stored["architectures"]) == (names.ORIGINAL_LANGUAGE, [names.LANGUAGE_CLASS])
    native, original = (load_language(tmp_path / each).state_dict() for each in ("native", "original"))
    assert native.keys() == original.keys()
    assert all(torch.equal(native[name], original[name]) for name in native)
    assert load_model(str(tmp_path / "original"), device="cpu").image_area == 32 * 32


def test_a_plan_trains_nothing(sft: Callable[..., CommandResult], tmp_path: Path, store: Path) -> None:
    result = sft("--dry-run", "--json", "--data", store, "--data", store, "--coefficients", "1,0.5", epochs=3)
    assert result.code == 0, result.err
    plan = result.document
    assert plan["steps"] == 4
    assert [each["rows_an_epoch"] for each in plan["data"]] == [12, 6]
    assert (plan["validation_rows"], plan["thinking_rows"], plan["over_max_length"]) == (0, 0, 0)
    assert plan["origins"]["coefficients"] == "--coefficients"
    assert plan["origins"]["epochs"] == "--set"
    assert plan["memory"]["device"] > plan["memory"]["weights"] > 0
    assert not (tmp_path / "out").exists()


def test_a_plan_for_people_has_no_powers_of_ten(sft: Callable[..., CommandResult]) -> None:
    result = sft("--dry-run", max_steps=24000)
    assert "24000 steps of 2 examples: 4,000 epochs of 12 examples" in result.out
    assert "weights on 1 device, by calculation" in result.out


def test_the_plan_says_what_the_training_does(sft: Callable[..., CommandResult], tmp_path: Path, store: Path) -> None:
    values = {"max_steps": "null", "epochs": 1.5, "accumulation": 4}
    both = ["--data", store, "--data", store, "--coefficients", "1,0.4", "--json"]
    planned = sft(*both, "--dry-run", **values).document
    trained = sft(*both, **values).document
    assert planned["steps"] == trained["steps"] == 3  # an epoch of 16 examples is two steps of eight


def test_tensorboard_writes_into_the_folder_of_the_run(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert sft(trackers='["tensorboard"]').code == 0
    (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    logged = [line["loss"] for line in log if "loss" in line]
    assert [scalar.value for scalar in read.Scalars("train/loss")] == pytest.approx(logged)
    assert [scalar.step for scalar in read.Scalars("train/loss")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_resumes_with_the_present_settings(sft: Callable[..., CommandResult], tmp_path: Path) -> None:
    """The advice of the message about a loss that is not finite must help."""
    assert sft(min_learning_rate=0).code == 0
    assert sft(max_steps=8, learning_rate=1e-4, min_learning_rate=0).code == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in log if "loss" in line}
    assert rates[2] == pytest.approx(3e-3)
    for step in range(5, 9):
        done = (step - 1 - 1) / (8 - 1)  # of the descent, which follows one step of warm-up
        assert rates[step] == pytest.approx(1e-4 * (1 + math.cos(math.pi * done)) / 2, rel=1e-3)


@pytest.mark.slow
def test_stdout_is_one_document_and_stderr_has_no_noise(tiny_model_dir: Path, store: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "earl_cli",
        "sft",
        "--model",
        tiny_model_dir,
        "--data",
        store,
        "-o",
        tmp_path / "x",
    ]
    more = ["--json", "--device", "cpu", *options(**SMALL, **MORE)]
    done = subprocess.run([*map(str, command), *more], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["steps"] == 4
    assert [line for line in done.stderr.splitlines() if "Warning" in line or line.startswith("[")] == []


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_checkpoints_are_models_of_which_the_best_is_named(
    sft: Callable[..., CommandResult], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    result = sft(
        "--json", "--validation", store, checkpoint_every=3, validate_every=2, keep_checkpoints=1, gallery_examples=0
    )
    assert result.code == 0, result.err
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    assert list(losses) == [2, 4]
    step = min(losses, key=lambda each: losses[each])
    assert result.document["best"] == {"step": step, "validation_loss": losses[step]}
    assert result.document["validation_loss"] == losses[4]
    assert (out / "best").resolve() == out / CHECKPOINTS / f"checkpoint-{step}"
    for name in ("best", f"{CHECKPOINTS}/checkpoint-4"):
        edited = tmp_path / f"{step}-{name.replace('/', '-')}.png"
        photo = Path(__file__).parents[2] / "docs/photos/palace.jpg"
        assert run(["edit", str(photo), "make it snowy", "--model", str(out / name), "-o", str(edited)]) == 0
        assert edited.is_file()
    trained = load_language(out).state_dict()
    last = load_language(out / CHECKPOINTS / "checkpoint-4").state_dict()
    assert all(torch.equal(trained[name], last[name]) for name in trained)
    capsys.readouterr()
    assert sft("--model", out / "best", "-o", tmp_path / "next", "--dry-run").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"lora_rank": 4}])
def test_a_run_of_an_earlier_version_resumes(
    values: dict[str, object], sft: Callable[..., CommandResult], tmp_path: Path
) -> None:
    """Its checkpoints are transformers' own: weights or adapters, without what makes a folder edit."""
    whole = sft("--json", "-o", tmp_path / "whole", checkpoint_every=2, **values)
    assert whole.code == 0, whole.err
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / CHECKPOINTS / "checkpoint-4")
    old = tmp_path / "out" / CHECKPOINTS / "checkpoint-2"
    for name in ("earl.json", "tokenizer.json"):
        (old / name).unlink()
    shutil.rmtree(old / "vision")
    (tmp_path / "out/begun.json").unlink()
    if values:
        (old / "model.safetensors").unlink()
        for path in (old / "adapter").iterdir():
            path.rename(old / path.name)
        (old / "adapter").rmdir()
    again = sft("--json", **values)
    assert again.code == 0, again.err
    assert again.document["resumed_from"] == 2
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_a_sharded_run_of_an_earlier_version_is_refused_with_the_reason(
    sft: Callable[..., CommandResult], tmp_path: Path
) -> None:
    """Its optimizer has one group of weights; today those of norms are another."""
    old = tmp_path / "out" / CHECKPOINTS / "checkpoint-2"
    (old / "global_step2").mkdir(parents=True)
    (old / "global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    (old / "complete").touch()
    text = error_message(sft(sharding="zero2"), 2)
    assert "this sharded run was started by an older earl, with weight decay for norms" in text
    assert "hint: resume with the version that started it, or start from its weights: choose another --output" in text


@pytest.mark.slow
def test_other_data_than_at_the_start_is_warned_about(
    sft: Callable[..., CommandResult], store: Path, tmp_path: Path
) -> None:
    assert sft().code == 0
    again = sft("--data", store, "--data", store, max_steps=5)
    assert again.code == 0, again.err
    assert "this run was started with other data, and resumes with the present data" in again.err
