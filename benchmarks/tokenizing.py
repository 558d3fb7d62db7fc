"""Pairs of images to codes: our pass into a store against the published way, in pairs a second, end to end.

Both sides read the same folder of JPEGs with the same random weights and as many threads of torch, each in a process of
its own. The published way takes one image after another: open, resize by area, transformers' own `Emu3VQVAE.encode`
(four frames of it), a .pth file for each pair, and a list of all of them. Their codes are compared. `--full` takes the
published config of 270.7 M parameters, otherwise a quarter of its width; `--edits` is how many pairs share a source.
Our pass is measured in one process with all threads, and as ranks of one thread each, as torchrun would start them.

`--memory ROWS` shows instead how much memory a pass over that many rows of a Parquet file takes as it goes on, and
`--ranks` what two processes of the command, as torchrun starts them, gain over one (the embedded model's tokenizer).

``python benchmarks/tokenizing.py [--full] [--pairs 24] [--area 9216] [--threads 2] [--workers 1] [--json]``
`--smoke` takes the smallest size, all in this process, one rank after the other.
"""

# torch is imported where it is needed: worker processes run the top of this file as well

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from transformers import Emu3VQVAE

    from earl_cli.data.tokenizing import PassProgress

SMALL = {"base_channels": 64, "hidden_size": 256}
TINY = {
    "codebook_size": 512,
    "temporal_downsample_factor": 1,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "hidden_size": 64,
    "num_attention_heads": 1,
}
TINY_AREA = 32 * 32
SMOKE = {"pairs": 4, "area": 16 * 16, "rounds": 1}
MOST_DIFFERENT = 0.01
"""The share of codes that may differ: where two are equally near to what was encoded."""
REDUCTION = 8  # a side of an image on disk, over that of the same image for the model
PUBLISHED, EARL, RANKS = "published", "earl", "earl, a rank a thread"
MEMORY_AT = (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)


def photo(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Something as smooth as a photo, with a bit of grain."""
    soft = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = generator.integers(-8, 9, (size[1], size[0], 3), dtype=np.int16)
    return Image.fromarray((np.asarray(soft, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8))


def grids(area: int) -> list[tuple[int, int]]:
    """Sizes of exactly this area, in whole codes: there both sides' ways to resize agree."""
    sizes = [(width, area // width) for width in range(8, area, 8) if area % width == 0 and area // width % 8 == 0]
    found = [size for size in sizes if max(size) <= 2.5 * min(size)]
    if not found:
        raise SystemExit(f"no size of {area} pixels has sides of whole codes; take 9216 or 65536")
    return found


def write_pairs(folder: Path, pairs: int, edits: int, sizes: Sequence[tuple[int, int]]) -> None:
    """Images of those sizes in turn and the list of pairs; ``edits`` pairs have one source."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for index in range(pairs):
        size = sizes[index // edits % len(sizes)]
        row = {"id": f"{index:06}", "source": f"{index // edits:06}.jpg", "edited": f"{index:06}.edited.jpg"}
        for name in (row["source"], row["edited"]):
            if not (folder / name).exists():
                photo(generator, size).save(folder / name, quality=90)
        rows.append({**row, "instruction": "make it snowy"})
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


# -- the two sides -------------------------------------------------------------------------------------------------


def published_way(vision: Emu3VQVAE, folder: Path, output: Path, area: int) -> None:
    """A file for each pair, one image after the other."""
    import torch

    def codes(name: str) -> torch.Tensor:
        image = Image.open(folder / name).convert("RGB")
        ratio = math.sqrt(area / (image.width * image.height))
        image = image.resize((round(image.width * ratio), round(image.height * ratio)))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1.0
        with torch.no_grad():
            found: torch.Tensor = vision.encode(pixels, torch.tensor([pixels.shape[-2:]])).image_tokens[0]
        return found

    (output / "feature").mkdir(parents=True)
    listed = []
    for number, line in enumerate((folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        path = output / "feature" / f"{row['id']}.pth"
        torch.save(
            {
                "name": row["id"],
                "instruction": row["instruction"],
                "source_image": codes(row["source"]),
                "edited_image": codes(row["edited"]),
            },
            path,
        )
        listed.append(str(path))
        if number % 1000 == 0:
            (output / "list.json").write_text(json.dumps(listed), encoding="utf-8")
    (output / "list.json").write_text(json.dumps(listed), encoding="utf-8")


def our_pass(vision: Emu3VQVAE, folder: Path, output: Path, given: argparse.Namespace, rank: int, ranks: int) -> None:
    """Shards of half a rank's part, so that both have as much to do."""
    from earl_cli.data.shard_plan import ShardShare
    from earl_cli.data.sources.registry import DataLocation, open_source
    from earl_cli.data.tokenizing import TokenizeSettings, tokenize

    settings = TokenizeSettings(
        given.area,
        batch_size=given.batch_size,
        workers=given.workers,
        rows_per_shard=-(-given.pairs // (2 * ranks)),
        share=ShardShare(rank, ranks),
    )
    tokenize(open_source(DataLocation(str(folder))), vision, "random", output, settings, "benchmark")


def different_codes(published: Path, store: Path) -> tuple[int, int]:
    """How many codes differ, of how many. Raises SystemExit if even their grids do."""
    import torch

    from earl_cli.data.store import examples_of, open_store

    different = together = 0
    for pair in examples_of(open_store(store).table()):
        theirs = torch.load(published / "feature" / f"{pair.id}.pth", weights_only=True)
        for name, mine in (("source_image", pair.source), ("edited_image", pair.target)):
            if theirs[name].shape != mine.shape:
                raise SystemExit(f"pair {pair.id}: {mine.shape} codes here, {tuple(theirs[name].shape)} there")
            different += int((theirs[name].numpy() != mine).sum())
            together += mine.size
    return different, together


def seconds_of(side: str, given: argparse.Namespace, folder: Path, output: Path) -> float:
    """One pass of a side, in processes of its own that load the model before the clock starts."""
    ranks = given.threads if side == RANKS else 1
    if given.smoke:
        return max(_seconds_of_rank(side, given, folder, output, rank, ranks) for rank in range(ranks))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(ranks, spawn, _start_together, (spawn.Barrier(ranks),)) as processes:
        parts = [processes.submit(_seconds_of_rank, side, given, folder, output, rank, ranks) for rank in range(ranks)]
        return max(part.result() for part in parts)


_together: Barrier | None = None


def _start_together(barrier: Barrier) -> None:
    global _together  # noqa: PLW0603 - for the whole life of a process
    _together = barrier


def _seconds_of_rank(side: str, given: argparse.Namespace, folder: Path, output: Path, rank: int, ranks: int) -> float:
    if side != PUBLISHED:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch takes any memory, as in the command
    import torch

    torch.set_num_threads(given.threads // ranks)
    vision = random_vision({} if given.full else TINY if given.smoke else SMALL)
    if _together:
        _together.wait()
    started = time.perf_counter()
    if side == PUBLISHED:
        published_way(vision, folder, output, given.area)
    else:
        our_pass(vision, folder, output, given, rank, ranks)
    return time.perf_counter() - started


def random_vision(config: dict[str, Any]) -> Emu3VQVAE:
    import torch
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(0)
    return Emu3VQVAE(Emu3VQVAEConfig(**config)).eval()


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every side in alternating rounds; ratios are the published way's seconds over ours."""
    seconds: dict[str, list[float]] = {side: [] for side in (PUBLISHED, EARL, RANKS)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pairs"
        sizes = [(width * REDUCTION, height * REDUCTION) for width, height in grids(given.area)]
        write_pairs(folder, given.pairs, given.edits, sizes)
        different = {}
        for turn in range(given.rounds):
            outputs = {side: Path(scratch) / f"{side} {turn}" for side in seconds}
            for side, found in seconds.items():
                found.append(seconds_of(side, given, folder, outputs[side]))
            if not turn:
                for side in (EARL, RANKS):
                    different[side], codes = different_codes(outputs[PUBLISHED], outputs[side])
                    if different[side] > MOST_DIFFERENT * codes:
                        raise SystemExit(f"error: {different[side]} of {codes} codes of {side} differ")
    ratios = {}
    for side in (EARL, RANKS):
        each = [theirs / mine for theirs, mine in zip(seconds[PUBLISHED], seconds[side], strict=True)]
        best = min(seconds[PUBLISHED]) / min(seconds[side])
        ratios[side] = {"best": round(best, 2), "median": round(statistics.median(each), 2)}
    return {
        "config": "published" if given.full else "the smallest" if given.smoke else "a quarter of its width",
        "pairs": given.pairs,
        "edits_of_a_source": given.edits,
        "area": given.area,
        "threads": given.threads,
        "workers": given.workers,
        "codes": codes,
        "different_codes": different,
        "seconds": {side: [round(each, 2) for each in found] for side, found in seconds.items()},
        "pairs_a_second": {side: round(given.pairs / min(found), 3) for side, found in seconds.items()},
        "ratios": ratios,
    }


# -- memory --------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: int) -> None:
    """A table with a small PNG in each of two columns, every one another image, 100 rows a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.binary()) for name in ("source", "edited")] + [("instruction", pa.string())])
    generator = np.random.default_rng(0)

    def picture() -> bytes:
        encoded = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()

    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 100):
            count = min(100, rows - start)
            columns = [[picture() for _ in range(count)] for _ in range(2)]
            writer.write_table(pa.table([*columns, [f"edit {start + row}" for row in range(count)]], schema=schema))


def resident(pid: int | str | None = "self") -> float:
    """MB that a process holds in memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """What this process and its worker processes hold at some points of a pass."""
    import torch

    from earl_cli.data.sources.registry import DataLocation, open_source
    from earl_cli.data.tokenizing import TokenizeSettings, tokenize

    torch.set_num_threads(1)
    vision = random_vision(TINY)
    points = list(MEMORY_AT)
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pairs.parquet"
        writing = multiprocessing.get_context("spawn").Process(target=write_parquet, args=(path, given.memory))
        writing.start()
        writing.join()
        size = path.stat().st_size
        started = time.perf_counter()

        def on_rows(tally: PassProgress) -> None:
            if points and tally.rows >= points[0] * given.memory:
                workers = max((resident(process.pid) for process in multiprocessing.active_children()), default=0.0)
                here: dict[str, float] = {
                    "rows": tally.rows,
                    "megabytes": round(resident()),
                    "worker_megabytes": round(workers),
                }
                found.append(here | {"seconds": round(time.perf_counter() - started)})
                if not given.json:
                    print(found[-1], flush=True)
                points.pop(0)

        settings = TokenizeSettings(TINY_AREA, workers=given.workers)
        tokenize(
            open_source(DataLocation(str(path))), vision, "random", Path(scratch) / "store", settings, "memory", on_rows
        )
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    result = {"rows": given.memory, "file_megabytes": round(size / 1e6), "workers": given.workers}
    return {**result, "peak_megabytes": peak, "memory": found}


# -- ranks ---------------------------------------------------------------------------------------------------------


def run_ranks(folder: Path, output: Path, count: int) -> float:
    """Seconds that ``count`` processes of the command take together, as torchrun would start them."""
    command = [sys.executable, "-m", "earl_cli", "tokenize", str(folder), "-o", str(output), "--device", "cpu"]
    started = time.perf_counter()
    processes = []
    for rank in range(count):
        place = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
        environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([*command, "--quiet"], env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a rank failed")
    return time.perf_counter() - started


def ranks(given: argparse.Namespace) -> dict[str, Any]:
    """One rank against two, each with one thread for torch and one worker process."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pairs"
        write_pairs(folder, given.pairs, given.edits, [(width * 2, height * 2) for width, height in grids(given.area)])
        for turn in range(given.rounds):
            stores = {count: Path(scratch) / f"{count}-{turn}" for count in seconds}
            for count, found in seconds.items():
                found.append(run_ranks(folder, stores[count], count))
            if list(contents(stores[1])) != list(contents(stores[2])):
                raise SystemExit("the stores of one rank and of two differ")
    ratios = [one / two for one, two in zip(*seconds.values(), strict=True)]
    return {
        "pairs": given.pairs,
        "seconds": {f"{count}": [round(each, 1) for each in found] for count, found in seconds.items()},
        "ratio": {"best": round(min(seconds[1]) / min(seconds[2]), 2), "median": round(statistics.median(ratios), 2)},
    }


def contents(store: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in sorted(store.glob("shard-*.parquet")))


# -- the program ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the published 270.7 M-parameter config")
    parser.add_argument("--pairs", type=int, help="24, or 4096 with --ranks")
    parser.add_argument("--edits", type=int, default=1, help="pairs that share a source picture")
    parser.add_argument("--area", type=int, default=96 * 96, help="pixels of a picture for the model")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on both sides")
    parser.add_argument("--workers", type=int, default=1, help="processes that read pictures, on our side")
    parser.add_argument("--batch-size", type=int, help="pictures that we encode at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, metavar="ROWS", help="show memory over a pass of so many rows instead")
    parser.add_argument("--ranks", action="store_true", help="compare two ranks of the command with one instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        vars(given).update(SMOKE)
    given.pairs = given.pairs or (4096 if given.ranks else 24)
    result = memory(given) if given.memory else ranks(given) if given.ranks else compare(given)
    if given.json:
        print(json.dumps(result))
    elif given.memory:
        print(
            f"{result['file_megabytes']} MB of pictures, {given.memory} rows, {given.workers} worker process(es), ",
            end="",
        )
        print(f"peak of this process {result['peak_megabytes']} MB")
    elif given.ranks:
        print(f"{given.pairs} pairs; seconds of 1 rank {result['seconds']['1']}, of 2 {result['seconds']['2']}")
        print(f"ratio of the best {result['ratio']['best']}, median {result['ratio']['median']}; equal shards")
    else:
        print(f"config: {result['config']}, {given.pairs} pairs, {given.edits} of each source, ", end="")
        print(f"{given.area} pixels, {given.threads} thread(s), {given.workers} worker process(es)")
        for side, speed in result["pairs_a_second"].items():
            print(f"  {side:21} {speed:8.3f} pairs/s at best; seconds of each round: {result['seconds'][side]}")
        for side, ratio in result["ratios"].items():
            print(f"{side}: ratio of the best {ratio['best']}, median {ratio['median']}; ", end="")
            print(f"{result['different_codes'][side]} of {result['codes']} codes differ")


if __name__ == "__main__":
    main()
