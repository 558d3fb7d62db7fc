"""A small trained tokenizer, and the same tokens as an original ranks file and as the published kind of conversion."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from earl_cli.tokens.layout import THINKING_END, THINKING_PREFIX, SequenceLayout
from earl_cli.tokens.text import JsonTokenizer, TextTokenizer, train_byte_bpe
from earl_cli.tokens.vocabulary import small_vocabulary

CORPUS = [
    "make it snowy, don't touch the sky.",
    "turn the photo into a foggy night  (or 3 of them)!",
    f"{THINKING_PREFIX} plan: add snow.{THINKING_END}",
    "<|image start|>32*32<|image token|><|extra_203|>\n\n",
]
TEXT_IDS, CODES = 400, 64

settings.register_profile("earl", deadline=None)
settings.load_profile("earl")


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return train_byte_bpe(CORPUS * 3, TEXT_IDS)


@pytest.fixture(scope="session")
def layout(tokenizer: TextTokenizer) -> SequenceLayout:
    return SequenceLayout(small_vocabulary(TEXT_IDS, CODES), tokenizer)


@pytest.fixture(scope="session")
def described(tokenizer: TextTokenizer) -> dict[str, Any]:
    assert isinstance(tokenizer, JsonTokenizer)
    content: dict[str, Any] = json.loads(tokenizer.tokenizer.to_str())
    return content


@pytest.fixture(scope="session")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory, described: dict[str, Any]) -> Path:
    """An original folder: `emu3.tiktoken` and `emu3_vision_tokens.txt`."""
    folder = tmp_path_factory.mktemp("original")
    to_byte = byte_of_symbol()
    tokens = {bytes(to_byte[symbol] for symbol in token): rank for token, rank in described["model"]["vocab"].items()}
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in tokens.items()]
    (folder / "emu3.tiktoken").write_text("\n".join(lines) + "\n\n")
    spellings = ["<|image token|>", "<|image start|>", "<|image end|>"]
    spellings += [f"<|visual token {code:06d}|>" for code in range(CODES)]
    (folder / "emu3_vision_tokens.txt").write_text("\n".join(spellings) + "\n")
    return folder


@pytest.fixture(scope="session")
def native_folder(tmp_path_factory: pytest.TempPathFactory, described: dict[str, Any]) -> Path:
    """A `tokenizer.json` as Emu3's conversion for transformers has it: control tokens in the vocabulary as well."""
    folder = tmp_path_factory.mktemp("native")
    content = json.loads(json.dumps(described))
    first = len(content["model"]["vocab"])
    spellings = ["<|endoftext|>", "<|extra_203|>", "<|image token|>", "<|image start|>", "<|visual token 000000|>"]
    content["model"]["vocab"] |= {spelling: first + index for index, spelling in enumerate(spellings)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [
        {"id": first + index, "content": spelling, **flags} for index, spelling in enumerate(spellings)
    ]
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bos = {"SpecialToken": {"id": "<|extra_203|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|extra_203|>": {"id": "<|extra_203|>", "ids": [first + 1], "tokens": ["<|extra_203|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def byte_of_symbol() -> dict[str, int]:
    """Which byte each symbol of a byte-level vocabulary means: printable ones themselves, others from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
