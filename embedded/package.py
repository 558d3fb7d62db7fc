"""Put the trained model into the package: 16-bit weights, check-sums, and a model card with its held-out metrics.

``python embedded/package.py WORK`` copies WORK/model to earl_cli/models/embedded; ``card`` as a second argument only
writes the card anew, after WORK/evaluation.json has changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from base import abilities

from earl_cli.models.checkpoint import load_language, save_language

TARGET = Path(__file__).parent.parent / "earl_cli/models/embedded"
LIMIT = 20_000_000

CARD = """# The embedded EARL model

A small instruction-based image editor of the classes that the 8 B model uses: `Emu3ForCausalLM` ({language:.1f} M
parameters) over an `Emu3VQVAE` ({vision:.1f} M parameters, 4096 codes, one for 8x8 pixels). It sees an image at
about 96x96 pixels; `earl edit` brings what it changed to the photo's own size.

## What it can do

{examples}

Anything else is outside its range, and `earl edit` says so: it knows no objects, no faces and no places in a scene,
and does one edit at a time. It was not trained to reason. At 96 pixels it generates no flakes and no drops: snow is a
white veil, rain a grey one. Asked for a square, it mostly generates a disc, so squares aren't on the list.

## Held-out results

Share of the error that the edit removes, 1 − MSE(edit, target) / MSE(source, target), at the photo's own size: the
mean over {photos} photos that it never saw, one sample each, not picked. Copying the source is 0, the target 1.
Ceiling: the same with the target's own codes, so what the vision tokenizer and the way back to full size cost.
Snow and rain are compared after a small blur, as flakes may lie elsewhere.

| edit | share removed | worst photo | ceiling |
| --- | --- | --- | --- |
{rows}

Mean of the {globals} global edits: **{mean:.2f}**.

## What it was made from

`make embedded-model` rebuilds it with the product's own commands. The training images are crops of {train} photos
and images out of public packages, with {objects} cut-out objects pasted on some: the Debian packages
gnome-backgrounds (CC BY-SA 3.0), mate-backgrounds (GPL-2+, CC BY-SA 4.0), plasma-workspace-wallpapers (GPL-2+,
LGPL-3), lxqt-themes (LGPL-2.1+, CC BY-SA 3.0), gcompris-qt-data (GPL-3+; its photos are public domain, CC0, CC BY and
CC BY-SA, each named in the package) and tuxpaint-stamps-default (GPL-2, many public domain). None of these images is
shipped. Held out entirely: {heldout} photos, all of scikit-image's and scikit-learn's among them. The edits are
formulas (`embedded/edits.py`), not people's work.

Weights: Apache-2.0, like the program.
"""


def package(work: Path) -> None:
    """Copy the trained model into the package in 16 bits, and say what it can do; refuses to exceed 20 MB."""
    shutil.rmtree(TARGET, ignore_errors=True)
    save_language(load_language(work / "model").to(torch.float16), TARGET)
    shutil.copy(work / "model/tokenizer.json", TARGET)
    described = json.loads((work / "model/earl.json").read_text()) | {"abilities": abilities()}
    (TARGET / "earl.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    shutil.copytree(work / "model/vision", TARGET / "vision")
    (TARGET / "__init__.py").write_text('"""The model that ships with the package; README.md is its card."""\n')
    files = sorted(path for path in TARGET.rglob("*") if path.suffix in {".json", ".safetensors"})
    sums = {str(path.relative_to(TARGET)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (TARGET / "checksums.json").write_text(json.dumps(sums, indent=1) + "\n")
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB in {TARGET}")
    if size > LIMIT:
        raise SystemExit("the embedded model is larger than 20 MB")


def write_card(work: Path) -> None:
    """The model card, from the evaluation and the lists of images."""
    from safetensors import safe_open

    def millions(path: Path) -> float:
        with safe_open(path, "pt") as weights:
            return sum(weights.get_tensor(name).numel() for name in weights.keys()) / 1e6  # noqa: SIM118

    evaluation = json.loads((work / "evaluation.json").read_text())
    table = evaluation["kinds"]
    images = list(json.loads((work / "sources.json").read_text()))
    kinds = abilities()["kinds"]
    rows = [
        f"| {kind} | {row['share']:.2f} | {row['worst']:.2f} | {row['ceiling']:.2f} |" for kind, row in table.items()
    ]
    whole = [row["share"] for kind, row in table.items() if kind not in evaluation["local_kinds"]]
    card = CARD.format(
        language=millions(TARGET / "model.safetensors"),
        vision=millions(TARGET / "vision/model.safetensors"),
        examples="\n".join(f"- {kind}: “{entry['example']}”" for kind, entry in sorted(kinds.items())),
        photos=evaluation["photos"],
        rows="\n".join(rows),
        globals=len(whole),
        mean=sum(whole) / len(whole),
        train=sum("photos/train" in name for name in images),
        heldout=sum("photos/heldout" in name for name in images),
        objects=sum("objects/" in name for name in images),
    )
    (TARGET / "README.md").write_text(card)


if __name__ == "__main__":
    if sys.argv[2:] != ["card"]:
        package(Path(sys.argv[1]))
    if (Path(sys.argv[1]) / "evaluation.json").exists():
        write_card(Path(sys.argv[1]))
