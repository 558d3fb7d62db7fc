"""What tests of several rooms share: a tiny model folder with random weights, in the format of the embedded model."""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_server import Hub
    from judge_server import JudgeServer
    from playwright.sync_api import Browser
    from trainings import Trainings
    from transformers import Emu3VQVAE

TINY_AREA = 32 * 32
TINY_ABILITIES = {
    "kinds": {
        "snow": {"phrases": ["make it snowy", "{add|let it} snow"], "example": "make it snowy"},
        "night": {"phrases": ["{turn it into|make it} night"], "example": "turn it into night"},
    },
}


def pytest_collection() -> None:
    """All imports happen now, and what they make stays: no search for garbage among it, now or later."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with much that takes long come first, so that no worker has one of them left when others are through."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What wasn't tested here, and why: one line a reason, whatever the number of tests."""
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.getreports("skipped"))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"skipped {count}: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder: hidden 64, 2 layers, 512 codes, 8 pixels a code, 32 x 32 pixels. Don't write into it.

    Its weights are random, so it draws noise, but every image of codes that it draws is finished.
    """
    import torch
    from transformers.models.emu3.configuration_emu3 import Emu3TextConfig, Emu3VQVAEConfig
    from transformers.models.emu3.modeling_emu3 import Emu3ForCausalLM, Emu3VQVAE

    from earl_cli.models.checkpoint import save_language
    from earl_cli.tokens.text import train_byte_bpe
    from earl_cli.tokens.vocabulary import small_vocabulary

    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    text = train_byte_bpe(["make it snowy", "turn it into night", "32*32"], size=280)
    vocabulary = small_vocabulary(text.size, codes=512)
    text.save(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        language = Emu3ForCausalLM(
            Emu3TextConfig(
                vocab_size=vocabulary.size,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=4096,
                rope_theta=10000.0,
                attention_dropout=0.0,
                pad_token_id=vocabulary.pad,
                bos_token_id=vocabulary.bos,
                eos_token_id=vocabulary.eos,
                tie_word_embeddings=False,
            )
        )
        vision = Emu3VQVAE(
            Emu3VQVAEConfig(
                codebook_size=vocabulary.codes,
                embed_dim=4,
                latent_channels=4,
                temporal_downsample_factor=1,
                base_channels=32,
                channel_multiplier=[1, 1, 2, 2],
                num_res_blocks=1,
                hidden_size=64,
                attn_resolutions=[3],
                num_attention_heads=1,
            )
        )
    save_language(language, folder)
    vision.save_pretrained(folder / "vision")
    description = {
        "vocabulary": vocabulary.to_dict(),
        "image_area": TINY_AREA,
        "vision": "vision",
        "sampling": {"temperature": 1.0, "top_k": 64, "top_p": 1.0},
        "abilities": TINY_ABILITIES,
    }
    (folder / "earl.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def fine_vision(tiny_model_dir: Path) -> Emu3VQVAE:
    """A vision tokenizer like the tiny model's, with 4 pixels a code in place of 8."""
    import torch
    from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    config = Emu3VQVAEConfig.from_pretrained(tiny_model_dir / "vision", channel_multiplier=[1, 1, 2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Emu3VQVAE(config).eval()


@pytest.fixture(autouse=True)
def fresh_console() -> Iterator[None]:
    """No test inherits the console's state: what one asks for (``--quiet``) holds until a process ends."""
    from earl_cli.console import console

    console.reset()
    yield
    console.reset()


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """No test inherits the environment that another left: one that trains in this process makes it a rank."""
    before = dict(os.environ)
    yield
    for name in {*before, *os.environ} - {"PYTEST_CURRENT_TEST"}:
        if os.environ.get(name) != before.get(name):
            os.environ.pop(name, None)
            os.environ |= {name: before[name]} if name in before else {}


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    """Starts commands out of a process that has imported all that they need, the same one for all tests."""
    from trainings import Trainings

    program = Trainings(tmp_path_factory.mktemp("logs"))
    yield program
    program.close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A model hub on this machine, empty at first, that both this process and others with its ``environment`` use."""
    from hub_server import Hub, lead_here, leave

    server = Hub(tmp_path / "hub-home").start()
    lead_here(server, monkeypatch)
    yield server
    server.stop()
    leave()


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge on this machine that is healthy at first; nothing says where it is but its ``api_base``."""
    from judge_server import JudgeServer

    for name in ("OPENAI_API_KEY", "APP__REWARD_FUNCTION_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = JudgeServer().start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; where there is none, tests with it are skipped (see `browser.py`)."""
    from browser import launched

    with launched() as browser:
        yield browser
