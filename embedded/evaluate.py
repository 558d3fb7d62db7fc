"""Held-out metrics of an embedded model: for each kind of edit, the share of the error that it removes,
1 − MSE(edit, target) / MSE(source, target), at the photo's own size, on photos it never saw.

``python embedded/evaluate.py WORK MODEL [PHOTOS]`` writes WORK/evaluation.json and an image for each kind: rows of
source, edit and target. Beside the share stands that of the target's own codes: the ceiling of the tokenizer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from edits import Edit, Pixels, catalogue, to_bytes
from PIL import Image, ImageFilter

from earl_cli.config.sampling import SamplingParams
from earl_cli.generation.editing import (
    EditJob,
    EditSettings,
    contact_sheet,
    decode_image,
    encode_image,
    render_edit,
    sample_edits,
)
from earl_cli.generation.transformers_engine import TransformersEngine
from earl_cli.images.compose import compose
from earl_cli.images.image_file import open_image
from earl_cli.models.bundle import load_model

RANDOM_KINDS = ("snow", "rain")  # compared after a blur that forgives the place of a flake
LOCAL_KINDS = ("mirror", "circle", "square")  # the others change the whole image in place


def removed(edited: Pixels, source: Pixels, target: Pixels, kind: str) -> float:
    """1 − MSE(edited, target) / MSE(source, target)."""
    if kind in RANDOM_KINDS:
        edited, source, target = (softened(pixels) for pixels in (edited, source, target))
    return float(1 - np.square(edited - target).mean() / np.square(source - target).mean())


def softened(pixels: Pixels) -> Pixels:
    image = Image.fromarray(to_bytes(pixels))
    return as_floats(image.filter(ImageFilter.GaussianBlur(0.03 * min(image.size))))


def as_floats(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32) / 255


def evaluate(work: Path, folder: Path, count: int) -> None:
    model = load_model(str(folder), device="cpu")
    engine = TransformersEngine(model.language, model.layout)
    described = json.loads((folder / "earl.json").read_text())
    sampling = SamplingParams.from_dict(described["sampling"])
    paths = sorted((work / "photos/heldout").glob("*.png"))
    by_kind: dict[str, list[Edit]] = {}
    for edit in catalogue():
        by_kind.setdefault(edit.kind, []).append(edit)
    (work / "evaluation").mkdir(exist_ok=True)
    table: dict[str, dict[str, float]] = {}
    for kind, edits in by_kind.items():
        rows, shares, ceilings = [], [], []
        for index, path in enumerate(paths[:count]):
            rng = np.random.default_rng((99, index, len(kind)))
            edit = edits[rng.integers(len(edits))]
            phrase = edit.phrases[rng.integers(len(edit.phrases))]
            photo = open_image(path)
            source = as_floats(photo.rgb)
            target = as_floats(Image.fromarray(to_bytes(edit.apply(source, rng))))
            variant = sample_edits(model, engine, [EditJob(photo.rgb, phrase, (index,))], EditSettings(sampling))[0][0]
            before = decode_image(model, variant.source)
            edited = as_floats(render_edit(model, photo.rgb, before, variant, "source").image)
            true_codes = encode_image(model, Image.fromarray(to_bytes(target)))
            ideal = compose(np.asarray(photo.rgb), before, decode_image(model, true_codes), variant.effects)
            ceiling = as_floats(Image.fromarray(ideal.pixels))
            shares.append(removed(edited, source, target, kind))
            ceilings.append(removed(ceiling, source, target, kind))
            generated = render_edit(model, photo.rgb, before, variant, "model").image.resize(photo.rgb.size)
            rows += [photo.rgb, generated, *(Image.fromarray(to_bytes(p)) for p in (edited, ceiling, target))]
        table[kind] = {"share": float(np.mean(shares)), "ceiling": float(np.mean(ceilings)), "worst": min(shares)}
        print(
            f"{kind:16s} {table[kind]['share']:6.2f} (ceiling {table[kind]['ceiling']:5.2f}, worst {min(shares):5.2f})",
            flush=True,
        )
        contact_sheet([row.resize((300, 200)) for row in rows], 5).save(
            work / "evaluation" / f"{kind.replace(' ', '-')}.png"
        )
    document = {"photos": min(count, len(paths)), "local_kinds": LOCAL_KINDS, "kinds": table}
    (work / "evaluation.json").write_text(json.dumps(document, indent=1))
    whole = [row["share"] for kind, row in table.items() if kind not in LOCAL_KINDS]
    print(f"mean of the {len(whole)} global kinds {np.mean(whole):.3f}")


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 8)
