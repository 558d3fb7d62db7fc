"""Models from a Hub, over the network: found by id and revision, whole or not at all, and from the cache without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub, Repository
from huggingface_hub import constants
from PIL import Image

from earl_cli.errors import ModelError
from earl_cli.models.bundle import identify, load_model, load_vision_of, open_base, save_trained
from earl_cli.models.checkpoint import load_language
from earl_cli.models.hub import display_name, locate

LOG_IN = "accept its terms on its page and log in with `hf auth login`"


@pytest.fixture
def tiny(hub: Hub, tiny_model_dir: Path) -> Repository:
    """The tiny model as ``org/tiny``."""
    return hub.add(Repository("org/tiny", {"main": tiny_model_dir}))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def complaint(source: str) -> str:
    """The message about a model that can't be located; it is one line."""
    with pytest.raises(ModelError) as error:
        locate(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_embedded_model_has_a_name() -> None:
    for name in ("embedded", "Embedded", "EMBEDDED"):
        assert locate(name) == locate(None)
        assert display_name(name) == display_name(None) == "embedded"
    assert identify("embedded") == identify()
    assert open_base("Embedded").language == open_base().language
    assert load_vision_of("embedded").fingerprint == load_vision_of().fingerprint
    model = load_model("Embedded", device="cpu", language_elsewhere=True)
    assert model.name == "embedded"


def test_a_folder_called_embedded_is_named_by_its_path(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("embedded").mkdir()
    assert locate("embedded") == locate(None)
    assert caplog.messages == []  # it is no model, so it can't be what was meant
    shutil.copyfile(tiny_model_dir / "config.json", "embedded/config.json")
    for _ in range(2):
        assert locate("embedded") == locate(None)
    (result,) = caplog.messages
    assert result.startswith("embedded is the model that ships with earl")
    assert "./embedded" in result
    assert locate("./embedded").resolve() == tmp_path / "embedded"
    assert locate("embedded/").resolve() == tmp_path / "embedded"


def test_a_name_that_is_nearly_the_embedded_models_is_guessed() -> None:
    assert "did you mean embedded?" in complaint("embeded")
    assert "a model is a folder, a Hub id org/name, or embedded" in complaint("default")


def test_a_model_by_id(hub: Hub, tiny: Repository, tiny_model_dir: Path) -> None:
    folder = locate("org/tiny")
    assert folder.name == tiny.sha()
    assert files(folder) == [name for name in files(tiny_model_dir) if "/" not in name]
    assert (folder / "model.safetensors").read_bytes() == (tiny_model_dir / "model.safetensors").read_bytes()
    assert hub.sent("vision/model.safetensors") == 0
    hub.forget()
    assert locate("org/tiny") == folder
    assert hub.sent("model.safetensors") == 0


def test_a_revision_by_its_name(hub: Hub, tiny_model_dir: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_model_dir, tmp_path / "other"))
    (other / "README.json").write_text("{}")
    repository = hub.add(Repository("org/tiny", {"main": tiny_model_dir, "ckpt_001999": other, "refs/pr/1": other}))
    for name in ("ckpt_001999", "refs/pr/1"):
        assert locate(f"org/tiny@{name}").name == locate("org/tiny", name).name == repository.sha(name)
        assert "README.json" in files(locate(f"org/tiny@{name}"))
    assert locate("org/tiny").name == locate(f"org/tiny@{repository.sha()}").name == repository.sha()
    assert complaint("org/tiny@nothing") == "org/tiny@nothing: the Hub has no revision 'nothing' of this model"


def test_only_what_is_allowed_is_fetched(hub: Hub, tiny: Repository) -> None:
    folder = locate("org/tiny", allow=("*.json",))
    assert "config.json" in files(folder)
    assert not any(name.endswith(".safetensors") for name in files(folder))
    locate("org/tiny", allow=("*.json",), subfolder="vision")
    assert [name for name in files(folder) if "/" in name] == ["vision/config.json"]


def test_old_weights_where_there_are_no_others(hub: Hub, tiny_model_dir: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_model_dir, tmp_path / "old"))
    (old / "model.safetensors").rename(old / "pytorch_model.bin")
    hub.add(Repository("org/old", {"main": old}))
    assert "pytorch_model.bin" in files(locate("org/old"))
    assert hub.sent("pytorch_model.bin") == (old / "pytorch_model.bin").stat().st_size
    assert locate("org/old") == locate("org/old")
    hub.stop()
    assert "pytorch_model.bin" in files(locate("org/old"))


def test_a_whole_model_loads_and_loads_again_without_the_hub(
    hub: Hub, tiny: Repository, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = load_model(str(tiny_model_dir))
    model = load_model("org/tiny")
    assert (model.name, model.fingerprint, model.abilities) == ("org/tiny", local.fingerprint, local.abilities)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(model.language(ids).logits, local.language(ids).logits)
    assert load_vision_of("org/tiny").fingerprint == load_vision_of(str(tiny_model_dir)).fingerprint
    hub.forget()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert load_model("org/tiny").fingerprint == local.fingerprint
    assert hub.requests == []
    hub.stop()
    assert load_model("org/tiny").fingerprint == local.fingerprint
    assert load_model("org/tiny@main").name == "org/tiny@main"


def test_a_vision_tokenizer_from_a_repository_of_its_own(
    hub: Hub, tiny: Repository, tiny_model_dir: Path, tmp_path: Path
) -> None:
    hub.add(Repository("org/eyes", {"main": tiny_model_dir / "vision"}))
    blind = Path(shutil.copytree(tiny_model_dir, tmp_path / "blind", ignore=shutil.ignore_patterns("vision")))
    content = json.loads((blind / "earl.json").read_text())
    (blind / "earl.json").write_text(json.dumps(content | {"vision": "org/eyes"}))
    hub.add(Repository("org/blind", {"main": blind}))
    assert load_model("org/blind").fingerprint == load_model("org/tiny").fingerprint


def test_a_model_trained_from_the_hub_needs_it_no_more(hub: Hub, tiny: Repository, tmp_path: Path) -> None:
    save_trained(open_base("org/tiny"), load_language("org/tiny"), tmp_path / "trained")
    shutil.rmtree(hub.home)
    hub.stop()
    assert load_model(str(tmp_path / "trained")).name == "trained"


def test_a_model_that_moves_on_is_fetched_again(
    hub: Hub, tiny: Repository, tiny_model_dir: Path, tmp_path: Path
) -> None:
    before = locate("org/tiny")
    newer = Path(shutil.copytree(tiny_model_dir, tmp_path / "newer"))
    (newer / "new.json").write_text("{}")
    hub.add(Repository("org/tiny", {"main": newer}))
    after = locate("org/tiny")
    assert "new.json" in files(after)
    assert "new.json" not in files(before)
    hub.stop()
    assert locate("org/tiny") == after


def test_a_gated_model(hub: Hub, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(Repository("org/gated", {"main": tiny_model_dir}, gated=True))
    result = complaint("org/gated")
    assert result.startswith("org/gated: this model on the Hub is gated (")
    assert LOG_IN in result
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert complaint("org/gated") == result
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "model.safetensors" in files(locate("org/gated"))
    monkeypatch.delenv("HF_TOKEN")
    assert "model.safetensors" in files(locate("org/gated"))  # what was fetched stays


@pytest.mark.parametrize("token", [None, "hf_of_somebody_else"])
def test_an_unknown_or_private_model(
    hub: Hub, tiny_model_dir: Path, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(Repository("org/private", {"main": tiny_model_dir}, private=True))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for source in ("org/nothing", "org/private"):
        result = complaint(source)
        assert result.startswith(
            f"{source}: no such folder here and no such public model on the Hub (check the spelling"
        )
        assert LOG_IN in result


@pytest.mark.parametrize("source", ["org--tiny/x", "org/tiny.", "org/-tiny", "org/tiny.git"])
def test_an_id_that_no_model_can_have(hub: Hub, source: str) -> None:
    assert complaint(source).startswith(f"{source}: ")
    assert hub.requests == []


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "vision/model.safetensors"])
def test_a_connection_that_breaks_off_is_taken_up_again(
    hub: Hub, tiny: Repository, tiny_model_dir: Path, file: str
) -> None:
    hub.break_off("org/tiny", file, times=2)
    assert load_model("org/tiny").fingerprint == load_model(str(tiny_model_dir)).fingerprint
    assert hub.cuts["org/tiny", file] == 0


@pytest.mark.parametrize("file", ["model.safetensors", "earl.json", "vision/model.safetensors"])
def test_a_connection_that_always_breaks_off(hub: Hub, tiny: Repository, tiny_model_dir: Path, file: str) -> None:
    hub.break_off("org/tiny", file)
    with pytest.raises(
        ModelError, match=r"^org/tiny: the download of this model from the Hub failed: .*without sending"
    ) as error:
        load_model("org/tiny")
    assert "\n" not in str(error.value)
    assert "network" in str(error.value.hint)
    served = {path.stat().st_size for path in tiny_model_dir.rglob("*") if path.is_file()}
    assert all(path.stat().st_size in served for path in hub.home.glob("hub/*/snapshots/**/*") if path.is_file())
    hub.heal()
    assert load_model("org/tiny").fingerprint == load_model(str(tiny_model_dir)).fingerprint


def test_half_a_model_in_the_cache_is_no_model(hub: Hub, tiny: Repository) -> None:
    hub.break_off("org/tiny", "model.safetensors")
    complaint("org/tiny")
    hub.stop()
    result = complaint("org/tiny")
    assert "the model isn't in the Hub's cache, and the Hub can't be reached" in result
    assert "check the network" in result


def test_without_a_hub_and_without_a_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stop()
    result = complaint("org/tiny")
    assert "the model isn't in the Hub's cache, and the Hub can't be reached" in result
    assert "check the network" in result
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = complaint("org/tiny")
    assert "HF_HUB_OFFLINE is set" in result
    assert "unset HF_HUB_OFFLINE once" in result


def test_a_proxy_that_refuses(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    assert complaint("org/tiny").startswith("org/tiny: the download of this model from the Hub failed: ")
    assert hub.requests[-1].method == "CONNECT"


def test_a_folder_wins_over_an_id(hub: Hub, tiny: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("org/tiny") == Path("org/tiny")
    assert hub.requests == []


@pytest.mark.slow
def test_earl_edit_with_a_model_from_the_hub(hub: Hub, tiny: Repository, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.png")

    def edit(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "earl_cli", "edit", "photo.png", "make it snowy", "--device", "cpu"]
        env = hub.environment
        return subprocess.run(
            [*command, "--seed", "1", *more], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    done = edit("--model", "org/tiny", "-o", "first.png")
    assert done.returncode == 0, done.stderr
    assert "org/tiny: " in done.stderr
    assert Image.open(tmp_path / "first.png").size == (64, 48)
    hub.stop()
    done = edit("--model", "org/tiny", "-o", "second.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
