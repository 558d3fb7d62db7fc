"""Configs, single values from the command line, lists of data sets, and benchmarks and judges that a file declares."""

from __future__ import annotations

from pathlib import Path

from fuzzing import Room

from earl_cli.config.loader import read_paths, resolve
from earl_cli.config.rl import RlConfig
from earl_cli.config.sft import SftConfig
from earl_cli.errors import EarlError
from earl_cli.evaluation.benchmarks import find_benchmark
from earl_cli.rewards.judge.declarations import load_declaration, load_rubrics

GOOD = {
    "a.json": b'{"data": ["a", "b"], "output": "o", "epochs": 2, "learning_rate": 1e-4, "trackers": ["wandb"]}',
    "a.yaml": b"data: [a, b]\noutput: o\nepochs: 2\nlearning_rate: 1e-4\ntrackers:\n  - wandb\nbetas: [0.9, 0.95]\n",
    "a.toml": b'data = ["a", "b"]\noutput = "o"\nepochs = 2\nlearning_rate = 1e-4\ntrackers = ["wandb"]\n',
    "rl.yaml": b"model_path: m\ndata: [a]\noutput: o\nreward: viescore\nengine_args: {a: [1, {b: c}]}\n",
    "set": b"learning_rate=1e-3",
    "paths.json": b'{"a": "x", "b": "y/z"}',
    "paths.txt": b"# sets\na\nb/c\n",
    "benchmark.toml": b'[b]\ntitle = "B"\nsize = "model"\npaper = { shuffle = 42, first = 10 }\n[[b.parts]]\n'
    b'place = "x/y"\nsplit = "test"\ncolumns = { image = "i", instruction = "t" }\n',
    "judge.toml": b'pictures = "before"\nquality = 95\nchroma = "4:4:4"\ntemperature = 0.5\n'
    b'role = "user"\narea = 262144\n',
    "rubrics.toml": b'semantic_consistency = "is {instruction} done?"\nperceptual_quality = "good?"\n'
    b'ground_score = """\nhow {instruction}?"""\npairwise = \'which {instruction}?\'\n',
}
SNIPPETS = (
    b"&a [*a]", b"*a", b"<<: *a", b"!!python/object/apply:os.system [ls]", b"!!binary aGk=", b"!!set {a}",
    b"? [a]\n: b", b"2024-01-01", b"2024-01-01T00:00:00Z", b"12:30:45", b"0o777", b"0x" + b"f" * 500, b"1_000", b"~",
    b"null", b".inf", b".nan", b"[" * 5000, b"{a: " * 500, b"9" * 6000, b"%YAML 9.9\n---\n", b"--- ", b"...", b"\t",
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"${APP__X}", b"${HOME}", b"$" * 50, b"1: 2", b"true: 1", b"= = =",
    b"[[a]]\n", b"[a.b.c]\n", b"a.b.c = 1\n", b'"""', b"\n\n",
)  # fmt: skip
HOSTILE = [
    (
        "a.yaml",
        b"a: &a [1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (n + 1, n + 1, b",".join([b"*%c" % n] * 9)) for n in range(97, 120)),
    ),
    ("a.yaml", b"? " * 100_000),
    ("a.yaml", b"- " * 100_000),
    ("a.yaml", b"1: 2\n2024-01-01: 3\n[a]: 4\n"),
    ("a.yaml", b"data: [2024-01-01, 2024-01-01T00:00:00Z, 12:30:45]\noutput: 2024-01-01\n"),
    ("a.json", b'{"epochs": ' + b"9" * 6000 + b"}"),
    ("a.toml", b"epochs = " + b"9" * 6000),
    ("a.toml", b"a." * 100_000 + b"b = 1"),
    *((name, b"a = " + b"[" * 100_000) for name in ("a.toml", "benchmark.toml", "judge.toml", "rubrics.toml")),
    *((name, b"a." * 100_000 + b"b = 1") for name in ("benchmark.toml", "judge.toml", "rubrics.toml")),
    *((name, b"quality = " + b"9" * 6000) for name in ("benchmark.toml", "judge.toml", "rubrics.toml")),
    ("set", b"epochs=" + b"9" * 5000),
    ("set", b"epochs=" + b"[" * 100_000),
    ("set", b"\xff=\xff"),
]


def read(name: str, content: bytes, folder: Path) -> str:
    path = folder / name
    path.write_bytes(content)
    if name == "set":
        given = {"data": ("a",), "output": Path("o")}
        resolve(SftConfig, None, [content.decode("utf-8", "surrogateescape")], given)
    elif name.startswith("paths"):
        read_paths(path)
    elif name.startswith("benchmark"):
        find_benchmark(str(path))
    elif name.startswith("judge"):
        load_declaration(str(path))
    elif name.startswith("rubrics"):
        load_rubrics(path)
    else:
        resolve(RlConfig if name.startswith("rl") else SftConfig, str(path))
    return "read"


ROOM = Room("configs", GOOD, read, (EarlError,), SNIPPETS, HOSTILE, 400)
