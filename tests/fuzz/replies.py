"""What a judge answers."""

from __future__ import annotations

from pathlib import Path

from fuzzing import Room

from earl_cli.rewards.replies import UnreadableError, is_all_thoughts, read_choice, read_scores, read_tag

READERS = {"scores": read_scores, "tag": read_tag, "choice": read_choice}
GOOD = {
    "scores": b'{"score": [6, 0], "reasoning": "the cat is \\"gone\\""}',
    "scores in a fence": b'```json\n{"score": [6.5, 10],\n"reasoning": "fine"}\n```',
    "scores after a thought": b'<think>hm, {"score": [1, 1]}?</think>\nscore: [8/10, 8 out of 10]',
    "scores alone": "【6、0】".encode(),
    "tag": b"The sky is blue. <score>7</score>",
    "choice": b"The first one is sharper. <choice>1</choice>",
}
SNIPPETS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b"(",
        b")",
        b'"',
        b"'",
        b"```",
        b"<think>",
        b"</think>",
        b"<score>",
        b"</score>",
        b"<choice>tie",
    ),
    *(
        b"score",
        b"scores:",
        b"score=[",
        b"out of 10",
        b"/10",
        b"nan",
        b"inf",
        b"1e999",
        b"9" * 6000,
        b"[" * 3000,
        b"{" * 3000,
    ),
    *(
        b'{"score":' * 300,
        b" " * 3000,
        b"\n" * 3000,
        b"<" * 3000,
        b"-" * 3000,
        b"1," * 3000,
        b'""' * 3000,
        b"\\" * 3000,
    ),
    *(b"\\ud800", b"\xed\xa0\x80", b"\0", "\uff3b\uff18\uff0f\uff11\uff10\uff3d".encode(), "\u0660\u0663".encode()),
)
HOSTILE = [
    (name, text * (19_000 // len(text)))
    for name in ("scores", "tag", "choice")
    for text in (*SNIPPETS[:30], b"{score:", b"{'score': [1", b"[1, ", b"<think>", b"<score>1", b"{,", b"[1,\n")
]


def read(name: str, content: bytes, _folder: Path) -> str:
    text = content.decode("utf-8", "replace")
    is_all_thoughts(text)
    reply = READERS[name.split(maxsplit=1)[0]](text)
    assert all(0 <= number <= 10 for number in reply.numbers), reply
    return "read"


ROOM = Room("replies", GOOD, read, (UnreadableError,), SNIPPETS, HOSTILE, 1000)
