"""What a judge answers."""

from __future__ import annotations

from pathlib import Path

from fuzzing import Room

from earl_cli.rewards.judge.replies import (
    InvalidReplyError,
    is_unfinished_reasoning,
    parse_choice,
    parse_scores,
    parse_tag,
)

READERS = {"scores": parse_scores, "tag": parse_tag, "choice": parse_choice}
GOOD = {
    "scores": b'{"score": [6, 0], "reasoning": "the cat is \\"gone\\""}',
    "scores in a fence": b'```json\n{"score": [6.5, 10],\n"reasoning": "fine"}\n```',
    "scores after a thought": b'<think>hm, {"score": [1, 1]}?</think>\nscore: [8/10, 8 out of 10]',
    "scores alone": "【6、0】".encode(),
    "tag": b"The sky is blue. <score>7</score>",
    "choice": b"The first one is sharper. <choice>1</choice>",
}
WORDS = "{ } [ ] ( ) \" ' ``` <think> </think> <score> </score> <choice>tie score scores: score=[ /10 nan inf 1e999"
SNIPPETS = (
    *WORDS.encode().split(b" "),
    *(each * 3000 for each in (b"[", b"{", b" ", b"\n", b"<", b"-", b"9", b"1,", b'""', b"\\", b'{"score":')),
    *(b"out of 10", b"\\ud800", "［８／１０］".encode(), "٠٣".encode(), b"\xed\xa0\x80", b"\0"),
)
HOSTILE = [
    (name, text * (19_000 // len(text)))
    for name in ("scores", "tag", "choice")
    for text in (*SNIPPETS, b"{score:", b"{'score': [1", b"[1, ", b"<think>", b"<score>1", b"{,", b"[1,\n")
]


def read(name: str, content: bytes, _folder: Path) -> str:
    text = content.decode("utf-8", "replace")
    is_unfinished_reasoning(text)
    reply = READERS[name.split(maxsplit=1)[0]](text)
    assert all(0 <= score <= 10 for score in reply.scores), reply
    return "read"


ROOM = Room("replies", GOOD, read, (InvalidReplyError,), SNIPPETS, HOSTILE, 1000)
