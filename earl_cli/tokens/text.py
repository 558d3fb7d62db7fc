"""Text tokenizers: Emu3's own ranks file, a `tokenizer.json`, or a small byte-level BPE trained here.

No tokenizer reads control tokens from text: a spelling such as ``<|image start|>`` is plain text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from earl_cli.errors import InputError, ModelError, OutputError, UsageError
from earl_cli.files import atomic_write, loads
from earl_cli.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

RANKS_FILE, VISION_TOKENS_FILE, JSON_FILE = "emu3.tiktoken", "emu3_vision_tokens.txt", "tokenizer.json"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EMU3_SPELLINGS = frozenset(("<|extra_203|>", "<|image start|>", "<|image token|>"))
MAX_TEXT_CHARACTERS = 100_000

_JSON_HINT = "is this folder an Emu3 or EARL model?"
_PROBE = "Make it 3 times\n as SNOWY:  <|image start|>\x00\U0001f600"


class TextTokenizer(Protocol):
    """Text to ids and back; all ids lie in ``[0, size)`` and ``fingerprint`` names the exact mapping."""

    @property
    def size(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos or any other addition. Raises InputError for text that isn't valid Unicode."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that aren't UTF-8 become U+FFFD and ids outside ``[0, size)`` are left out."""

    def save(self, folder: Path) -> Path:
        """Write the file that `load_text_tokenizer` reads into ``folder`` and return its path."""


@dataclass(frozen=True)
class RanksTokenizer:
    """Emu3's original tokenizer: tiktoken over a ranks file, after bringing the text to Unicode NFC as it does."""

    encoding: tiktoken.Encoding = field(repr=False, compare=False)
    ranks: dict[bytes, int] = field(repr=False, compare=False)
    fingerprint: str

    @property
    def size(self) -> int:
        return len(self.ranks)

    def encode(self, text: str) -> list[int]:
        return list(self.encoding.encode_ordinary(unicodedata.normalize("NFC", _check_text(text))))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.encoding.decode([i for i in map(int, ids) if 0 <= i < self.size], errors="replace"))

    def save(self, folder: Path) -> Path:
        lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in self.ranks.items()]
        return _write(folder / RANKS_FILE, "".join(lines))


@dataclass(frozen=True)
class JsonTokenizer:
    """A byte-level BPE in the format of the `tokenizers` library, without added tokens."""

    tokenizer: tokenizers.Tokenizer = field(repr=False, compare=False)
    size: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(_check_text(text), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        known = [i for i in map(int, ids) if 0 <= i < self.size]
        return str(self.tokenizer.decode(known, skip_special_tokens=False))

    def save(self, folder: Path) -> Path:
        return _write(folder / JSON_FILE, self.tokenizer.to_str(pretty=False))


def load_text_tokenizer(folder: Path, expected: Vocabulary | None = None) -> TextTokenizer:
    """The text tokenizer of a model folder: `emu3.tiktoken` if there is one, else `tokenizer.json`.

    With ``expected``, a ranks file must hold exactly ``expected.text_size`` tokens, which detects an incomplete
    download, and a list of vision tokens in the same folder must have ``expected.codes`` of them. Raises ModelError if
    neither file is there, or if it is damaged or of another kind.
    """
    ranks, described = folder / RANKS_FILE, folder / JSON_FILE
    if ranks.is_file():
        _check_vision_tokens(folder / VISION_TOKENS_FILE, expected)
        return _load_ranks(ranks, expected)
    if described.is_file():
        return _load_json(described)
    raise ModelError(
        f"no text tokenizer: neither {RANKS_FILE} nor {JSON_FILE} is there",
        where=str(folder),
        hint="copy one of them from the model that this one was trained from",
    )


def train_byte_bpe(texts: Iterable[str], size: int) -> TextTokenizer:
    """A byte-level BPE of at most ``size`` tokens learnt from ``texts``; it reads and writes any text without loss.

    Raises UsageError if ``size`` is below 256, the number of bytes.
    """
    import tokenizers

    if size < 256:
        raise UsageError(f"a byte-level tokenizer needs at least 256 tokens, got {size}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_check_text(text) for text in texts), trainer)
    return _json_tokenizer(tokenizer.to_str(), where="trained tokenizer")


def _check_text(text: str) -> str:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InputError(f"a text of {len(text):,} characters is too long, the limit is {MAX_TEXT_CHARACTERS:,}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start + 1} of the text is half of a surrogate pair, which is no valid Unicode",
            hint="the text was probably cut or decoded wrongly",
        ) from None
    return text


def _load_ranks(path: Path, expected: Vocabulary | None) -> RanksTokenizer:
    import tiktoken

    content = path.read_bytes()
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ModelError("expected a base64 token and its rank", where=f"{path}, line {number}") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(f"the ranks of {len(ranks)} tokens don't run from 0 without a gap", where=str(path))
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ModelError(f"{len(missing)} single bytes have no token, the first is byte {missing[0]}", where=str(path))
    if expected is not None and len(ranks) != expected.text_size:
        raise ModelError(
            f"{len(ranks)} text tokens, but the model has {expected.text_size}",
            where=str(path),
            hint="the file is cut short or belongs to another model",
        )
    encoding = tiktoken.Encoding("emu3", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return RanksTokenizer(
        encoding, ranks, _digest("ranks NFC", SPLIT_PATTERN, sorted((r, t.hex()) for t, r in ranks.items()))
    )


def _check_vision_tokens(path: Path, expected: Vocabulary | None) -> None:
    if not path.is_file():
        return
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    wanted = ["<|image token|>", "<|image start|>", "<|image end|>"]
    wanted += [f"<|visual token {code:06d}|>" for code in range(expected.codes if expected else max(len(lines) - 3, 0))]
    if lines != wanted:
        aligned = zip(lines, wanted, strict=False)
        first = next((i for i, (line, want) in enumerate(aligned) if line != want), min(len(lines), len(wanted)))
        found = lines[first] if first < len(lines) else "the end of the file"
        want = wanted[first] if first < len(wanted) else "the end of the file"
        raise ModelError(f"token {first + 1} is {found} where the model expects {want}", where=str(path))


def _load_json(path: Path) -> JsonTokenizer:
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ModelError("not a text file", where=str(path), hint=_JSON_HINT) from None
    return _json_tokenizer(content, where=str(path))


def _json_tokenizer(content: str, *, where: str) -> JsonTokenizer:
    """The tokenizer of a `tokenizer.json`, without everything that isn't text.

    The published conversion of Emu3 lists control and visual tokens inside ``model.vocab``, and splits with GPT-2's
    pattern where Emu3 was trained with Qwen's and with NFC; both are corrected.
    """
    import tokenizers

    try:
        described: dict[str, Any] = loads(content)
        model = described["model"]
        vocabulary: dict[str, int] = dict(model["vocab"])
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        added = {token["content"] for token in described.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError):
        raise ModelError("not the description of a byte-level BPE tokenizer", where=where, hint=_JSON_HINT) from None
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if not alphabet <= vocabulary.keys() or model.get("type", "BPE") != "BPE":
        raise ModelError("this tokenizer isn't a byte-level BPE", where=where, hint=_JSON_HINT)
    text = alphabet | {"".join(merge) for merge in merges}
    if model.get("ignore_merges"):
        text |= vocabulary.keys() - added
    if vocabulary.keys() | added >= EMU3_SPELLINGS:
        described["normalizer"] = {"type": "NFC"}
        described["pre_tokenizer"] = _qwen_split()
    model["vocab"] = {token: index for token, index in vocabulary.items() if token in text}
    model["dropout"] = None
    described |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    described["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
    except Exception as error:  # the library raises bare Exception for any description it can't build
        raise ModelError(f"the tokenizer can't be built: {error}", where=where) from None
    fingerprint = _digest(
        sorted(model["vocab"].items()), merges, described.get("pre_tokenizer"), described.get("normalizer")
    )
    loaded = JsonTokenizer(tokenizer, max(model["vocab"].values()) + 1, fingerprint)
    if loaded.decode(loaded.encode(_PROBE)) != _PROBE:
        raise ModelError("this tokenizer doesn't decode to the encoded text", where=where, hint=_JSON_HINT)
    return loaded


def _qwen_split() -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _write(path: Path, content: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            aside.write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"the tokenizer can't be written: {error.strerror}", where=str(path)) from None
    return path
