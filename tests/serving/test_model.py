"""A real model behind the server: the same edits as ``earl edit``, whatever is drawn beside them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
from PIL import Image
from serving_servers import Running, eventually, pixels, png, running

from earl_cli.app import run
from earl_cli.generation.editing import SampledEdit
from earl_cli.generation.editor import load_editor
from earl_cli.serving import queue
from earl_cli.serving.limits import ServerLimits
from earl_cli.serving.service import service_of
from earl_cli.serving.site import Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[Running]:
    editor = load_editor(str(tiny_model_dir), device="cpu", engine="transformers")
    with running(service=service_of(editor, ServerLimits(rate=0), None, Site(is_local=True))) as server:
        yield server


def files_of(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(entry["b64_json"]) for entry in answer.json()["data"]]


def test_a_seed_means_the_same_edit_as_on_the_command_line(
    server: Running, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png(5, (90, 60)))
    line = ["edit", str(tmp_path / "a.png"), "make it snowy", "-o", f"{tmp_path}/out/", "--seed", "11", "-n", "3"]
    assert run([*line, "--model", str(tiny_model_dir), "--device", "cpu", "--json"]) == 0
    outputs = [result["output"] for result in json.loads(capsys.readouterr().out)["results"]]
    served = files_of(server.post(image=png(5, (90, 60)), seed=11, n=3))
    assert served == [Path(output).read_bytes() for output in outputs]


def test_who_is_edited_beside_it_changes_nothing(server: Running) -> None:
    alone = [files_of(server.post(image=png(n), seed=n)) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: files_of(server.post(image=png(n), seed=n)), range(8)))
    assert together == alone
    assert len({file for files in alone for file in files}) == 8


def test_sampling_is_what_the_form_says(server: Running) -> None:
    greedy = [pixels(files_of(server.post(seed=seed, temperature=0))[0]) for seed in (1, 2)]
    assert (greedy[0] == greedy[1]).all()
    assert (pixels(files_of(server.post(seed=1))[0]) != greedy[0]).any()


def test_what_the_server_says_of_the_model(server: Running, tiny_model_dir: Path) -> None:
    health = httpx.get(f"{server.address}health").json()
    assert (health["model"], health["engine"], health["device"]) == (tiny_model_dir.name, "transformers", "cpu")
    settings = httpx.get(f"{server.address}settings").json()
    assert settings["suggestions"] == ["make it snowy", "turn it into night"]
    assert server.post().json()["notes"] == []
    assert "guess" in server.post(prompt="give it a moustache").json()["notes"][0]


def test_an_instruction_written_otherwise_is_the_trained_one_with_a_note(server: Running) -> None:
    loud = server.post(prompt=" MAKE  IT SNOWY, please! ", seed=5)
    assert (pixels(files_of(loud)[0]) == pixels(files_of(server.post(seed=5))[0])).all()
    assert loud.json()["notes"] == ["understood as: make it snowy"]
    with Image.open(io.BytesIO(files_of(loud)[0])) as image:
        assert image.info["understood as"] == "make it snowy"


def test_transparency_is_kept_where_the_format_has_it_and_noted_where_not(server: Running) -> None:
    cut_out = Image.new("RGBA", (60, 40), (200, 30, 30, 0))
    cut_out.paste((200, 30, 30, 255), (10, 10, 50, 30))
    stream = io.BytesIO()
    cut_out.save(stream, "PNG")
    kept = server.post(image=stream.getvalue(), output_format="png").json()
    assert (kept["background"], kept["notes"]) == ("transparent", [])
    flat = server.post(image=stream.getvalue(), output_format="jpeg", n=2).json()
    assert (flat["background"], len(flat["notes"])) == ("opaque", 1)
    assert "transparent is white" in flat["notes"][0]


def test_one_bad_order_does_not_spoil_its_batch(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    real = queue.sample_edits

    def sample_edits(model: object, engine: object, jobs: list, *more: object) -> list[list[SampledEdit]]:
        if any("bad" in job.instruction for job in jobs):
            raise ZeroDivisionError
        return real(model, engine, jobs, *more)

    monkeypatch.setattr(queue, "sample_edits", sample_edits)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(server.post, n=8)
        assert eventually(lambda: server.service.queue.running == 1 or first.done())
        answers = [pool.submit(server.post, prompt=prompt) for prompt in ("bad", "good", "make it night")]
        assert [answer.result().status_code for answer in answers] == [500, 200, 200]


def test_a_prompt_that_is_too_long_for_the_model_is_the_clients_mistake(server: Running) -> None:
    answer = server.post(prompt="雪" * 3000)
    assert answer.status_code == 400, answer.text
    assert "positions" in answer.json()["error"]["message"]
