"""``earl judge`` as a person types it, against a real server on this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from judge_server import MODEL, Faults, JudgeServer, random_image
from PIL import Image

from earl_cli import app
from earl_cli.app import run

SERVER = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import os, signal, sys, time
if "--port=broken" in sys.argv: sys.exit(9)
def stop(number, frame):
    print("got", number, flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("serving", os.getpid(), flush=True)
time.sleep(60)
"""

"""A program of Python for the shell and, as a text without effect, for Python: a path in #! may have no spaces."""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A photo, its edit, and the instruction."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(["photo.png", "edit.png", "target.png"]):
        Image.fromarray(random_image(seed, side=40)).save(name)
    return ["photo.png", "edit.png", "make it snowy"]


def test_every_documented_line_works(judge: JudgeServer, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP__REWARD_FUNCTION_API_BASE", judge.api_base)
    text = (Path(app.__file__).parents[1] / "docs" / "COMMANDS.md").read_text(encoding="utf-8")
    lines = re.findall(r"^earl (judge .+?) +#", text, re.MULTILINE)
    assert len(lines) >= 4
    for name in ("photo", "photo.edited", "target"):
        Image.fromarray(random_image(len(name), side=40)).save(f"{name}.jpg")
    for line in lines:
        assert run(shlex.split(line)) == 0, line


def test_alone_it_lists_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge"]) == 0
    out = capsys.readouterr().out
    for name in ("judge serve", "judge score", "judge check"):
        assert f"  {name}: " in out


def test_an_edit_is_scored(judge: JudgeServer, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", "score", *photos, "--api-base", judge.api_base]) == 0
    out = capsys.readouterr().out
    for text in ("semantic_consistency", "no_artifact", "viescore", "It's there [mostly]."):
        assert text in out
    assert all(call.images[0].startswith("40 x 40 ") for call in judge.calls)


def test_the_document(
    judge: JudgeServer, photos: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__REWARD_FUNCTION_API_BASE", judge.api_base)
    args = ["judge", "score", *photos, "--target", "target.png", "--reward", "ground_score", "--json"]
    assert run(args) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["value"] == document["parts"]["ground_score"]
    assert (document["model"], document["reward"]) == (MODEL, "ground_score")
    assert "roof is darker" in document["reason"]


def test_large_images_are_downscaled(judge: JudgeServer, photos: list[str]) -> None:
    assert run(["judge", "score", *photos, "--api-base", judge.api_base, "--image-area", "400"]) == 0
    assert judge.calls[0].images[0].startswith("20 x 20 ")


def test_a_reward_without_a_judge(photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_scores.py").write_text(
        "def difference(edits): return [float(abs(e.source - e.edited).mean()) for e in edits]"
    )
    assert run(["judge", "score", *photos, "--reward", "own_scores:difference"]) == 0
    assert "own_scores:difference" in capsys.readouterr().out


def test_the_request_format_can_be_declared(judge: JudgeServer, photos: list[str]) -> None:
    assert run(["judge", "score", *photos, "--api-base", judge.api_base, "--declaration", "viescore-published"]) == 0
    assert {len(call.body["messages"]) for call in judge.calls} == {2}
    assert run(["judge", "check", "--api-base", judge.api_base, "--declaration", "viescore-published"]) == 0


def test_a_function_that_gives_none(photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("no_scores.py").write_text("def nothing(edits): return [None for _ in edits]")
    assert run(["judge", "score", *photos, "--reward", "no_scores:nothing"]) == 1
    assert "there is no score: the reward function gave none" in capsys.readouterr().err


def test_a_judge_that_repeats_the_key_shows_it_nowhere(
    judge: JudgeServer, photos: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    judge.fixed_message = {"content": '{"score": [8, 6], "reasoning": "for sk-very-secret"}'}
    for words in (["--json"], ["--debug"]):
        assert run(["judge", "score", *photos, "--api-base", judge.api_base, *words]) == 0
    judge.refuses_text = "photo"  # in words that repeat it too
    assert run(["judge", "score", *photos, "--api-base", judge.api_base, "--debug"]) == 2
    judge.key = "another"
    assert run(["judge", "check", "--api-base", judge.api_base, "--debug"]) == 2
    captured = capsys.readouterr()
    assert "***" in captured.out
    assert "***" in captured.err
    assert "sk-very-secret" not in captured.out + captured.err


def test_a_judge_that_lists_no_models(judge: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    judge.lists_models = False
    assert run(["judge", "check", "--api-base", judge.api_base]) == 2
    assert run(["judge", "check", "--api-base", judge.api_base, "--model", "gpt"]) == 2
    assert "The model `gpt` does not exist" in capsys.readouterr().err
    assert run(["judge", "check", "--api-base", judge.api_base, "--model", MODEL]) == 0


def test_flags_beat_the_environment_and_empty_is_missing(
    judge: JudgeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__REWARD_FUNCTION_API_BASE", "http://127.0.0.1:9/v1")
    assert run(["judge", "check", "--api-base", judge.api_base]) == 0
    monkeypatch.setenv("MY_KEY", "")
    assert run(["judge", "check", "--api-base", judge.api_base, "--api-key-variable", "MY_KEY"]) == 2
    assert "not set, or empty: MY_KEY" in capsys.readouterr().err
    judge.key = "wanted"
    assert run(["judge", "check", "--api-base", judge.api_base]) == 2
    assert "wants a key, and there is none in OPENAI_API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--declaration", "viescor"], 2, "no declaration 'viescor'"),
        (["--reward", "ground_score"], 1, "--target names the target image"),
        (["--reward", "viescor"], 2, "no reward 'viescor'"),
        (["--model", "gpt"], 2, f"it serves {MODEL}"),
        (["--rubrics", "none.toml"], 2, "none.toml"),
        (["--api-base", "localhost"], 2, "http://localhost:4877/v1"),
        (["--target", "none.png"], 3, "none.png"),
    ],
)
def test_what_a_person_gets_wrong(
    args: list[str], code: int, expected: str, judge: JudgeServer, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["judge", "score", *photos, "--api-base", judge.api_base, *args]) == code
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


def test_a_healthy_judge_is_found_so(judge: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", "check", "--api-base", judge.api_base]) == 0
    out = capsys.readouterr().out
    assert "its reply can be parsed" in out
    assert MODEL in out
    judge.models = ("small-judge",)
    assert run(["judge", "check", "--api-base", judge.api_base, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "small-judge"
    assert len(document["scores"]) == 2
    assert document["seconds"] > 0


def test_an_unreadable_judge(judge: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    judge.faults = Faults(1.0, ("unreadable",), max_failures=float("inf"))
    assert run(["judge", "check", "--api-base", judge.api_base, "--json"]) == 1
    captured = capsys.readouterr()
    assert "can't be read" in captured.err
    assert json.loads(captured.out)["models"] == [MODEL]


@pytest.mark.slow
def test_no_judge_at_all(judge: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    judge.stop()
    assert run(["judge", "check", "--api-base", judge.api_base]) == 1
    error = capsys.readouterr().err
    assert f"error: {judge.api_base}: the judge doesn't answer" in error
    assert "earl judge serve" in error


def test_a_wrong_key(judge: JudgeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    judge.key = "right"
    monkeypatch.setenv("MY_KEY", "wrong-and-secret")
    assert run(["judge", "check", "--api-base", judge.api_base, "--api-key-variable", "MY_KEY"]) == 2
    error = capsys.readouterr().err
    assert "judge_api_key_variable" in error
    assert "wrong-and-secret" not in error
    monkeypatch.setenv("MY_KEY", "right")
    assert run(["judge", "check", "--api-base", judge.api_base, "--api-key-variable", "MY_KEY"]) == 0


def test_the_published_settings_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", "serve", "--dry-run", "--tensor-parallel", "4", "--", "--seed", "3"]) == 0
    assert shlex.split(capsys.readouterr().out) == [
        *("vllm", "serve", "Qwen/Qwen2.5-VL-72B-Instruct", "--host", "127.0.0.1", "--port", "4877"),
        *("--dtype", "bfloat16", "--tensor-parallel-size", "4", "--max-model-len", "4096", "--max-num-seqs", "1024"),
        *("--limit-mm-per-prompt", '{"image": 3}', "--seed", "3"),
    ]
    assert run(["judge", "serve", "--dry-run", "--json", "--port", "80"]) == 0
    assert "80" in json.loads(capsys.readouterr().out)["command"]


def test_a_missing_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert run(["judge", "serve"]) == 6
    assert 'pip install "earl-cli[vllm]"' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_and_exit_code_are_the_servers(number: signal.Signals, tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(0o755)
    environment = {**os.environ, "PATH": str(tmp_path)}
    line = [sys.executable, "-m", "earl_cli", "judge", "serve", "--tensor-parallel", "1"]
    if (Path(sys.executable).parent / "vllm").exists():
        pytest.skip("here a real one comes first")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == f"serving {process.pid}\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert out == f"got {number.value}\n"
    assert process.returncode == 3
    assert "vllm serve Qwen" in error
    broken = subprocess.run([*line, "--", "--port=broken"], capture_output=True, check=False, env=environment)
    assert broken.returncode == 9
