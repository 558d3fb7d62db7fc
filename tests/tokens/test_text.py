from __future__ import annotations

import json
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earl_cli.errors import InputError, ModelError, OutputError, UsageError
from earl_cli.tokens.text import TextTokenizer, load_text_tokenizer, train_byte_bpe
from earl_cli.tokens.vocabulary import EMU3, small_vocabulary

SPELLINGS = [
    "<|endoftext|>", "<|extra_200|>", "<|extra_203|>", "<|image token|>", "<|image start|>", "<|image end|>",
    "<|visual token 000000|>", "<|start thinking|>", "<|end thinking|>", "<|im_start|>", "32*32", "<pad>", "</s>",
]  # fmt: skip
texts = st.one_of(
    st.text(),
    st.lists(st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=8))).map("".join),
    st.sampled_from(
        ["", "\0", "\n", " ", "\r\n\t", "👩‍👩‍👧‍👦", "é", "e\u0301", "\ufeff", "\ufffd", "雪を降らせて", "  a  "]
    ),
)
KINDS = ["trained", "original", "native"]


@pytest.fixture(scope="session")
def tokenizers_by_kind(tokenizer: TextTokenizer, ranks_folder: Path, native_folder: Path) -> dict[str, TextTokenizer]:
    original, native = load_text_tokenizer(ranks_folder), load_text_tokenizer(native_folder)
    return {"trained": tokenizer, "original": original, "native": native}


@given(text=texts)
def test_the_trained_tokenizer_gives_any_text_back(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=texts)
def test_emu3_tokenizers_give_text_back_in_normal_form(tokenizers_by_kind: dict[str, TextTokenizer], text: str) -> None:
    for kind in ("original", "native"):
        found = tokenizers_by_kind[kind]
        assert found.decode(found.encode(text)) == unicodedata.normalize("NFC", text)


@given(text=texts)
def test_the_original_files_and_their_conversion_give_the_same_ids(
    tokenizers_by_kind: dict[str, TextTokenizer], text: str
) -> None:
    assert tokenizers_by_kind["original"].encode(text) == tokenizers_by_kind["native"].encode(text)


@given(text=texts)
def test_no_text_ever_becomes_anything_but_text_ids(tokenizers_by_kind: dict[str, TextTokenizer], text: str) -> None:
    for found in tokenizers_by_kind.values():
        assert all(0 <= token < found.size for token in found.encode(text))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_spelling_of_a_control_token_stays_text(
    tokenizers_by_kind: dict[str, TextTokenizer], kind: str, spelling: str
) -> None:
    found = tokenizers_by_kind[kind]
    assert found.size <= 400
    assert len(found.encode(spelling)) > 1
    assert found.decode(found.encode(spelling)) == spelling


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_added_to_a_text(tokenizers_by_kind: dict[str, TextTokenizer], kind: str) -> None:
    found = tokenizers_by_kind[kind]
    assert found.encode("") == []
    assert found.encode("make") + found.encode(" it") == found.encode("make it")


@pytest.mark.parametrize("kind", KINDS)
@given(ids=st.lists(st.integers(-5, 600)))
def test_any_ids_decode_to_text(tokenizers_by_kind: dict[str, TextTokenizer], kind: str, ids: list[int]) -> None:
    found = tokenizers_by_kind[kind]
    known = [token for token in ids if 0 <= token < found.size]
    assert found.decode(ids) == found.decode(known)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\ud83d then \ude00"])
def test_half_a_surrogate_pair_is_refused(tokenizers_by_kind: dict[str, TextTokenizer], kind: str, text: str) -> None:
    with pytest.raises(InputError, match="surrogate"):
        tokenizers_by_kind[kind].encode(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", [" ", "a", "\n", "<|", "😀", "'", " \n", "e\u0301"])
def test_long_monotonous_text_is_no_trap(tokenizers_by_kind: dict[str, TextTokenizer], kind: str, unit: str) -> None:
    text = unicodedata.normalize("NFC", unit * (50_000 // len(unit)))
    found = tokenizers_by_kind[kind]
    assert found.decode(found.encode(text)) == text


def test_text_of_unreasonable_length_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="100,001 characters is too long"):
        tokenizer.encode("a" * 100_001)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(
    tokenizers_by_kind: dict[str, TextTokenizer], kind: str, tmp_path: Path
) -> None:
    found = tokenizers_by_kind[kind]
    path = found.save(tmp_path / "new")
    again = load_text_tokenizer(tmp_path / "new")
    assert (again.size, again.fingerprint) == (found.size, found.fingerprint)
    assert again.encode("don't make it 31 times snowier") == found.encode("don't make it 31 times snowier")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_worker_processes_get_the_same_one(tokenizers_by_kind: dict[str, TextTokenizer], kind: str) -> None:
    found = tokenizers_by_kind[kind]
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert again.encode("make it snowy") == found.encode("make it snowy")


def test_different_tokenizers_have_different_fingerprints(tokenizers_by_kind: dict[str, TextTokenizer]) -> None:
    assert len({found.fingerprint for found in tokenizers_by_kind.values()}) == 3


@settings(max_examples=10)
@given(corpus=st.lists(st.text(), max_size=5), size=st.integers(256, 300), text=texts)
def test_training_on_anything_is_lossless_and_repeatable(corpus: list[str], size: int, text: str) -> None:
    trained = train_byte_bpe(corpus, size)
    assert 256 <= trained.size <= size
    assert trained.decode(trained.encode(text)) == text
    assert train_byte_bpe(corpus, size).fingerprint == trained.fingerprint


def test_training_learns_the_words_of_its_corpus() -> None:
    trained = train_byte_bpe(["make it snowy"] * 4, 300)
    assert len(trained.encode("make it snowy")) == 3
    with pytest.raises(UsageError, match="at least 256"):
        train_byte_bpe([], 255)
    with pytest.raises(InputError, match="surrogate"):
        train_byte_bpe(["\ud800"], 300)


def test_a_file_in_the_way_is_an_error_for_the_person(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        tokenizer.save(tmp_path / "file")


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither emu3\.tiktoken nor tokenizer\.json") as caught:
        load_text_tokenizer(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_ranks_file_must_be_the_one_of_the_model(ranks_folder: Path) -> None:
    size = load_text_tokenizer(ranks_folder).size
    assert load_text_tokenizer(ranks_folder, small_vocabulary(size, 64)).size == size
    with pytest.raises(ModelError, match=r"the model expects <\|visual token 000064\|>"):
        load_text_tokenizer(ranks_folder, EMU3)
    with pytest.raises(ModelError, match=f"{size} text tokens, but the model has {size + 1}"):
        load_text_tokenizer(ranks_folder, small_vocabulary(size + 1, 64))


def test_vision_tokens_in_another_order_are_noticed(ranks_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "emu3.tiktoken").write_bytes((ranks_folder / "emu3.tiktoken").read_bytes())
    lines = (ranks_folder / "emu3_vision_tokens.txt").read_text().splitlines()
    path = tmp_path / "emu3_vision_tokens.txt"
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ModelError, match=r"token 1 is <\|image start\|> where the model expects <\|image token\|>"):
        load_text_tokenizer(tmp_path)
    path.write_text("\n".join([*lines, "<|visual token 000099|>"]))
    with pytest.raises(ModelError, match="token 68 is"):
        load_text_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="the model expects the end of the file"):
        load_text_tokenizer(tmp_path, small_vocabulary(400, 64))
    path.write_text("")
    with pytest.raises(ModelError, match="token 1 is the end of the file"):
        load_text_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:300], "!!! 300"], "line 301: expected a base64 token and its rank"),
        (lambda lines: [*lines, "YWJj"], "expected a base64 token"),
        (lambda lines: [*lines, "YWJj x"], "expected a base64 token"),
        (lambda lines: [*lines[:270], *lines[271:]], "don't run from 0 without a gap"),
        (lambda lines: lines[:200], "56 single bytes have no token"),
        (lambda lines: lines[:0], "256 single bytes have no token, the first is byte 0"),
    ],
)
def test_a_damaged_ranks_file_is_named(ranks_folder: Path, tmp_path: Path, damage: Any, message: str) -> None:
    lines = (ranks_folder / "emu3.tiktoken").read_text().splitlines()
    (tmp_path / "emu3.tiktoken").write_text("\n".join(damage(lines)))
    with pytest.raises(ModelError) as caught:
        load_text_tokenizer(tmp_path)
    assert message in str(caught.value)
    assert "emu3.tiktoken" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"{}", b'{"model": {}}', b"\xff\xfe",
        b'{"model": {"type": "WordPiece", "vocab": {"a": 0}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', b'{"model": {"vocab": 3, "merges": []}}',
    ],
)  # fmt: skip
def test_a_tokenizer_json_of_another_kind_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_text_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "doesn't decode to the encoded text"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
            "doesn't decode to the encoded text",
        ),
        ({"pre_tokenizer": {"type": "NoSuchThing"}}, "can't be built"),
        ({"added_tokens": [{"id": 3}]}, "not the description"),
    ],
)
def test_a_tokenizer_that_would_change_text_is_refused(
    described: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**described, **change}))
    with pytest.raises(ModelError, match=message):
        load_text_tokenizer(tmp_path)


def test_a_tokenizer_that_skips_merges_keeps_its_words(described: dict[str, Any], tmp_path: Path) -> None:
    size = len(described["model"]["vocab"])
    model = {**described["model"], "ignore_merges": True, "vocab": {**described["model"]["vocab"], "xyzzy": size}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**described, "model": model}))
    assert load_text_tokenizer(tmp_path).encode("xyzzy") == [size]


def test_a_saved_file_is_read_in_another_process(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    program = (
        "import sys; from pathlib import Path; from earl_cli.tokens.text import load_text_tokenizer\n"
        "found = load_text_tokenizer(Path(sys.argv[1])); print(found.fingerprint, found.encode(sys.argv[2]))\n"
        "assert not {'torch', 'transformers', 'datasets', 'tiktoken'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), "make it snowy"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{tokenizer.fingerprint} {tokenizer.encode('make it snowy')}"
