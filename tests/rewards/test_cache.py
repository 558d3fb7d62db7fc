"""The file of answers: shared, killed, damaged."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from earl_cli.errors import OutputError
from earl_cli.rewards.judge.cache import ReplyCache
from earl_cli.rewards.judge.replies import ParsedReply

REPLY = ParsedReply((6.5, 0.0), "ok, é\ud83d")
KEPT = ParsedReply((6.5, 0.0), "ok, é?")
WRITER = """
import sys
from pathlib import Path
from earl_cli.rewards.judge.cache import ReplyCache
from earl_cli.rewards.judge.replies import ParsedReply
path, name, count = sys.argv[1:]
print("up", flush=True)
sys.stdin.readline()
for number in range(int(count)):
    with ReplyCache(Path(path)) as cache:
        cache.keep(f"{name} {number}", "raw", ParsedReply((number % 11,), name))
        cache.keep(f"both {number}", "raw", ParsedReply((number % 11,), name))
        print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "answers.sqlite"


def fill(path: Path, count: int) -> None:
    with ReplyCache(path) as cache:
        for number in range(count):
            cache.keep(str(number), "raw" * 200, REPLY)


def test_kept_replies_are_found(path: Path) -> None:
    with ReplyCache(path) as cache:
        assert cache.find(["a", "b"]) == {}
        assert cache.keep("a", "raw", REPLY) == KEPT
    with ReplyCache(path) as cache:
        assert cache.find(["a", "b"]) == {"a": KEPT}


def test_the_first_kept_reply_stays(path: Path) -> None:
    with ReplyCache(path) as one, ReplyCache(path) as other:
        one.keep("a", "raw", REPLY)
        assert other.keep("a", "other", ParsedReply((1.0,), "")) == KEPT


def test_more_keys_than_a_query_takes(path: Path) -> None:
    fill(path, 1)
    with ReplyCache(path) as cache:
        assert set(cache.find([str(number) for number in range(40_000)])) == {"0"}


def test_two_processes_write_into_one_file(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, name, "60"], **pipes) for name in ("one", "two")]  # type: ignore[call-overload]
    for writer in writers:
        assert writer.stdout.readline() == "up\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    with ReplyCache(path) as cache:
        assert len(cache.find([f"{name} {number}" for name in ("one", "two", "both") for number in range(60)])) == 180


def test_replies_kept_by_a_killed_process_are_there(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path), "one", "1000000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
        lines = [writer.stdout.readline() for _ in range(21)]
        writer.send_signal(signal.SIGKILL)
    with ReplyCache(path) as cache:
        assert len(cache.find([f"one {number}" for number in range(int(lines[-1]) + 1)])) == 20
        cache.keep("after", "raw", REPLY)


@pytest.mark.parametrize("damage", ["replaced", "emptied pages"])
def test_a_damaged_cache_is_renamed(damage: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path, 200)
    content = path.read_bytes()
    path.write_bytes(b"x" * 5000 if damage == "replaced" else content[:100] + b"\xff" * (len(content) - 100))
    with ReplyCache(path) as cache:
        assert cache.find(["1"]) == {}
        cache.keep("1", "raw", REPLY)
    assert [f"{path} was damaged" in each for each in caplog.messages] == [True]
    assert len(list(path.parent.glob("answers.sqlite.damaged-*"))) == 1
    with ReplyCache(path) as cache:
        assert set(cache.find(["1"])) == {"1"}
    assert len(caplog.messages) == 1


def test_damage_that_is_found_during_a_pass(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path, 2000)
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * (path.stat().st_size - 4096 * 3))
    with ReplyCache(path) as cache, ReplyCache(path) as other:
        keys = [str(number) for number in range(2000)]
        assert cache.find(keys) == {}
        assert cache.keep("1", "raw", REPLY) == KEPT
        assert other.find(keys) == {"1": KEPT}  # on the new file, without putting that aside too
    assert caplog.text.count("was damaged") == 1


def test_another_programs_file_is_not_touched(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("create table cakes (name text)")
    with pytest.raises(OutputError, match="no cache of a judge") as caught:
        ReplyCache(path)
    assert caught.value.where == str(path)


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="unable to open") as caught:
        ReplyCache(tmp_path)
    assert caught.value.where == str(tmp_path)
