"""``earl serve`` as a command: its options, and as a process that serves, is monitored, and is stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from command_result import CommandResult, error_message
from serving_servers import eventually, png

from earl_cli.app import run

SERVE = [sys.executable, "-m", "earl_cli", "serve", "--port", "0", "--device", "cpu"]


@pytest.fixture
def run_earl(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    def run_earl(*args: str) -> CommandResult:
        code = run(["serve", *args])
        return CommandResult(code, *capsys.readouterr())

    return run_earl


def test_a_taken_port_is_one_message(run_earl: Callable[..., CommandResult]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = error_message(run_earl("--port", str(port), "--model", "is never looked for"), code=2)
    assert f"--port {port}: this port is taken" in text
    assert f"--port {port + 1}" in text


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--host", "no.such.name.invalid"], 2, "no such name"),
        (["--host", "192.0.2.1"], 2, "doesn't have this address"),
        (["--port", "70000"], 2, "--port"),
        (["--port", "0", "--engine", "transformers", "--engine-arg", "a=1"], 2, "--engine-arg"),
        (["--max-queue", "0"], 2, "--max-queue"),
        (["--top-p", "0"], 2, "--top-p: must be above 0 and at most 1"),
        (["--api-key-variable", "EARL_NO_SUCH_KEY"], 2, "EARL_NO_SUCH_KEY"),
        (["--public-url", "photos.example"], 2, "--public-url photos.example: this isn't the address of a page"),
        (["--public-url", "https://me:secret@photos.example"], 2, "--public-url"),
        (["--trusted-proxy", "proxy.example"], 2, "--trusted-proxy proxy.example: this is no IP address"),
        (["--trusted-proxy", "0.0.0.0/0"], 2, "this would trust every address"),
        (["--port", "0", "--model", "/nonexistent/model"], 4, "/nonexistent/model"),
        (["--port", "0", "--device", "abacus"], 2, "abacus"),
    ],
)
def test_what_can_not_be_served(
    run_earl: Callable[..., CommandResult], args: list[str], code: int, expected: str
) -> None:
    answer = run_earl(*args)
    assert expected in error_message(answer, code)


@pytest.mark.parametrize("key", ["", " ", "sch\u00f6n", "two\nlines", "\U0001f511"])
def test_a_key_that_no_header_carries_is_refused(
    run_earl: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("EARL_TEST_KEY", key)
    answer = run_earl("--api-key-variable", "EARL_TEST_KEY", "--model", "is never looked for")
    assert "EARL_TEST_KEY" in error_message(answer, code=2)


Start = Callable[..., tuple[subprocess.Popen[str], dict[str, str]]]


@pytest.fixture
def start(tiny_model_dir: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start(*args: str, **environment: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
        process = subprocess.Popen(
            [*SERVE, "--model", str(tiny_model_dir), "--json", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in background
        )
        processes.append(process)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        return process, json.loads("".join(lines))

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_json_is_one_document_and_sigterm_ends_it(start: Start, tiny_model_dir: Path) -> None:
    process, about = start()
    assert about["model"] == tiny_model_dir.name
    assert about["device"] == "cpu"
    assert httpx.get(about["page"]).status_code == 200
    client = openai.OpenAI(base_url=about["api_base"], api_key="none", max_retries=0)
    assert client.images.edit(image=png(1), prompt="make it snowy").data
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=15)
    assert process.returncode == 143, err
    assert out == ""
    assert "an edit of 40 x 24 pixels" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_it_samples(start: Start, number: signal.Signals, code: int) -> None:
    process, about = start("--rate", "0", "--max-variants", "1000")

    def ask(stream: str) -> httpx.Response:
        form = {"prompt": "make it snowy", "n": "1000", "stream": stream}
        return httpx.post(f"{about['api_base']}/images/edits", data=form, files={"image": png(1)}, timeout=60)

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, stream) for stream in ("false", "true")]
        health = f"{about['page']}health"
        busy = {"waiting": 1, "drawing": 1}  # both have arrived: one that comes while the server closes is reset
        assert eventually(lambda: httpx.get(health).json()["queue"].items() >= busy.items())
        process.send_signal(number)
        _, err = process.communicate(timeout=15)
        assert process.returncode == code, err
        assert "Traceback" not in err
        assert [answer.result().status_code for answer in waiting] == [503, 200]
        assert all("the server is stopping" in answer.result().text for answer in waiting)


@pytest.mark.slow
def test_behind_a_proxy_with_a_key_from_the_environment(start: Start) -> None:
    public = ("--public-url", "https://photos.example/earl/")
    process, about = start(*public, "--api-key-variable", "EARL_TEST_KEY", EARL_TEST_KEY="open sesame")
    assert about["page"] == "https://photos.example/earl/"
    assert about["api_base"] == "https://photos.example/earl/v1"
    models, host = f"{about['address']}earl/v1/models", {"Host": "photos.example"}
    assert httpx.get(models, headers=host).status_code == 401
    assert httpx.get(models, headers={**host, "Authorization": "Bearer open sesame"}).status_code == 200
    process.send_signal(signal.SIGTERM)
    result = process.communicate(timeout=15)[1]
    assert "--trusted-proxy" in result
    assert "no key is required" not in result


@pytest.mark.slow
def test_beyond_this_machine_there_is_a_warning(start: Start) -> None:
    process, about = start("--host", "0.0.0.0")
    assert about["page"].startswith("http://127.0.0.1:")
    assert httpx.get(about["page"], headers={"Host": "photos.example"}).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert "no key is required" in process.communicate(timeout=15)[1]
