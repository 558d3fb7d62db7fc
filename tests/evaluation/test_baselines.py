"""The published baselines by their real pipelines with tiny random weights, from folders and from a Hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub, Repository
from PIL import Image

from earl_cli.errors import MissingExtraError, ModelError, UsageError
from earl_cli.evaluation import baselines
from earl_cli.evaluation.baselines import BASELINES, open_baseline
from earl_cli.evaluation.editors import BenchmarkEditor, EditorOutput, EditTask

pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="session")
def pix2pix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InstructPix2Pix pipeline whose VAE halves the sides. Don't write into it."""
    import torch
    from diffusers import PNDMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("baselines") / "pix2pix"
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {word: number for number, word in enumerate(words)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionInstructPix2PixPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(words),
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    bos_token_id=0,
                    eos_token_id=1,
                )
            ),
            tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
            unet=UNet2DConditionModel(
                sample_size=16,
                in_channels=8,
                block_out_channels=(8, 16),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=16,
                attention_head_dim=8,
                norm_num_groups=4,
            ),
            scheduler=PNDMScheduler(beta_start=0.00085, beta_end=0.012, skip_prk_steps=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def omnigen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OmniGen pipeline whose VAE makes a cell of 8 pixels, as the real one. Don't write into it."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("baselines") / "omnigen"
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    vocabulary = {word: number for number, word in enumerate(words)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = OmniGenTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_layers=1,
            pad_token_id=0,
            vocab_size=len(words),
            rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
            pos_embed_max_size=8,
            time_step_dim=8,
        )
        vae, tokenizer = _vae(halvings=3), LlamaTokenizer(vocab=vocabulary, merges=[])
    baselines._omnigen()
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    OmniGenPipeline(transformer, scheduler, vae, tokenizer).save_pretrained(folder)
    return folder


def _vae(halvings: int = 1) -> object:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4,) * (halvings + 1),
        down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
        up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, small images."""
    few = {name: replace(baseline, steps=3, area=32 * 32) for name, baseline in BASELINES.items()}
    monkeypatch.setattr(baselines, "BASELINES", few)


def task(
    seed: int = 0, instruction: str = "make it snowy", image: int = 0, size: tuple[int, int] = (64, 64)
) -> EditTask:
    noise = np.random.default_rng(image).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return EditTask("1", Image.fromarray(noise), instruction, seed)


def pixels(generated: list[EditorOutput]) -> list[bytes]:
    assert all(each.image is not None and each.image.mode == "RGB" for each in generated)
    return [each.image.tobytes() for each in generated if each.image is not None]


@pytest.fixture(scope="session")
def opened(pix2pix: Path, omnigen: Path) -> Callable[[str], BenchmarkEditor]:
    def opened(name: str) -> BenchmarkEditor:
        return open_baseline(name, str(omnigen if name == "omnigen" else pix2pix), "cpu")

    return opened


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("dtype", ["float32", "published"])
def test_edits_depend_on_image_instruction_and_seed_and_on_nothing_else(
    name: str, dtype: str, opened: Callable[[str], BenchmarkEditor], monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == "published":
        monkeypatch.setattr(baselines, "dtype_on", lambda baseline, _: baseline.dtype)
    editor, shares = opened(name), list[float]()
    tasks = [task(), task(seed=1), task(instruction="turn it into night"), task(image=1)]
    together = pixels(editor.edit(tasks, shares.append))
    assert len(set(together)) == 4
    assert [pixels(editor.edit([each]))[0] for each in reversed(tasks)] == together[::-1]
    assert pixels(opened(name).edit([tasks[1]])) == [together[1]]
    assert shares == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("name", "size", "generated"),
    [
        ("aurora", (64, 64), (32, 32)),
        ("aurora", (300, 150), (40, 16)),
        ("aurora", (8, 16), (16, 40)),
        ("omnigen", (300, 150), (32, 32)),
    ],
)
def test_the_size_is_the_models_own(
    name: str, size: tuple[int, int], generated: tuple[int, int], opened: Callable[[str], BenchmarkEditor]
) -> None:
    (found,) = opened(name).edit([task(size=size)])
    assert found.image is not None
    assert (found.image.size, found.seen) == (generated, generated)


def test_seeds_and_random_numbers_of_others_are_left_alone(opened: Callable[[str], BenchmarkEditor]) -> None:
    import torch

    before = torch.random.get_rng_state()
    opened("omnigen").edit([task()])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_instruction_may_look_like_an_image_placeholder(opened: Callable[[str], BenchmarkEditor]) -> None:
    (found,) = opened("omnigen").edit([task(instruction="add <img><|image_2|></img> and snow")])
    assert found.image is not None


def test_the_declarations_are_the_published_ones() -> None:
    found = {name: (each.model, each.pipeline, each.dtype, each.scheduler) for name, each in BASELINES.items()}
    family = ("StableDiffusionInstructPix2PixPipeline", "float16", "EulerAncestralDiscreteScheduler")
    assert found == {
        "instruct-pix2pix": ("timbrooks/instruct-pix2pix", *family),
        "magicbrush": ("vinesmsuic/magicbrush-paper", *family),
        "aurora": ("McGill-NLP/AURORA", *family),
        "omnigen": ("Shitao/Omnigen-v1-diffusers", "OmniGenPipeline", "bfloat16", None),
    }
    omnigen = BASELINES["omnigen"]
    assert (omnigen.guidance, omnigen.image_guidance, omnigen.area, omnigen.shape) == (2, 1.6, 512 * 512, "square")


def test_the_scheduler_is_euler_ancestral_with_the_models_noise(pix2pix: Path) -> None:
    editor = open_baseline("aurora", str(pix2pix), "cpu")
    editor.edit([task()])
    scheduler = editor._pipeline.scheduler  # type: ignore[attr-defined]
    assert type(scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert scheduler.config.beta_end == 0.012


def test_the_description_says_what_edits_depend_on(pix2pix: Path, tmp_path: Path) -> None:
    own = shutil.copytree(pix2pix, tmp_path / "own")
    editor = open_baseline("magicbrush", str(own), "cpu")
    described = json.loads(json.dumps(editor.describe()))
    assert (editor.name, editor.batch_size, described["name"]) == ("magicbrush", 1, "magicbrush")
    assert described["kind"] == "diffusers"
    assert described["model"] == str(own)
    assert (described["steps"], described["guidance"], described["image_guidance"]) == (3, 7.5, 1.5)
    assert (described["scheduler"], described["dtype"]) == ("EulerAncestralDiscreteScheduler", "float32")
    moved = open_baseline("magicbrush", str(own.rename(tmp_path / "moved")), "cpu").describe()
    assert moved["fingerprint"] == described["fingerprint"]
    weights = tmp_path / "moved" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert open_baseline("magicbrush", str(tmp_path / "moved"), "cpu").describe()["fingerprint"] != moved["fingerprint"]


# -- a Hub -----------------------------------------------------------------------------------------------------------


def test_published_weights_come_from_the_hub_once_and_at_one_commit(hub: Hub, pix2pix: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pix2pix, tmp_path / "published")
    unet = folder / "unet" / "diffusion_pytorch_model"
    shutil.copy(unet.with_suffix(".safetensors"), unet.with_suffix(".fp16.safetensors"))
    (folder / "v1-5.ckpt").write_bytes(b"a checkpoint of another program")
    repository = hub.add(Repository("timbrooks/instruct-pix2pix", {"main": folder}))
    editor = open_baseline("instruct-pix2pix", device="cpu")
    assert hub.requests == []
    assert editor.describe()["revision"] == repository.sha()
    assert hub.sent("diffusion_pytorch_model.safetensors") == 0
    assert pixels(editor.edit([task()])) == pixels(open_baseline("aurora", str(pix2pix), "cpu").edit([task()]))
    assert hub.sent("diffusion_pytorch_model.fp16.safetensors") == hub.sent("v1-5.ckpt") == 0


def test_weights_in_pytorchs_own_files(hub: Hub, pix2pix: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(pix2pix, tmp_path / "old")
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        (file,) = (folder / part).glob("*.safetensors")
        torch.save(load_file(file), folder / part / f"{stem}.bin")
        file.unlink()
    hub.add(Repository("org/old", {"v1": folder, "main": pix2pix}))
    found = open_baseline("aurora", "org/old@v1", "cpu").edit([task()])
    assert pixels(found) == pixels(open_baseline("aurora", str(pix2pix), "cpu").edit([task()]))


def test_a_model_that_is_not_on_the_hub(hub: Hub) -> None:
    editor = open_baseline("aurora", "org/nothing", "cpu")
    with pytest.raises(ModelError, match="no such public model on the Hub"):
        editor.edit([task()])
    with pytest.raises(ModelError, match="no such public model on the Hub"):
        editor.describe()


# -- what can't be -----------------------------------------------------------------------------------------------


def test_a_name_that_is_no_baseline() -> None:
    with pytest.raises(UsageError, match=r"'dall-e' is no baseline .one of instruct-pix2pix, magicbrush, aurora"):
        open_baseline("dall-e")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        open_baseline("aurora", str(tmp_path / "nowhere"))


def test_a_folder_without_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"this is no pipeline of diffusers: there is no model_index.json"):
        open_baseline("aurora", str(tmp_path))


def test_a_folder_with_another_pipeline(pix2pix: Path, omnigen: Path) -> None:
    with pytest.raises(
        ModelError, match=r"this pipeline is OmniGenPipeline, not .*Pix2PixPipeline: it has no text_enc"
    ):
        open_baseline("aurora", str(omnigen))
    with pytest.raises(ModelError, match="not OmniGenPipeline: it has no transformer"):
        open_baseline("omnigen", str(pix2pix))


def test_a_model_that_generates_from_text_alone(pix2pix: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pix2pix, tmp_path / "drawing")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 4}))
    with pytest.raises(ModelError, match="this is a text-to-image model, not an editor"):
        open_baseline("aurora", str(folder), "cpu").edit([task()])


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_damaged_part(part: str, pix2pix: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pix2pix, tmp_path / "damaged")
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="this StableDiffusionInstructPix2PixPipeline can't be loaded: ") as caught:
        open_baseline("aurora", str(folder), "cpu").edit([task()])
    assert caught.value.where == str(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "tokenizer", "tokenizer/tokenizer.json"])
def test_a_missing_part(part: str, pix2pix: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pix2pix, tmp_path / "part")
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    with pytest.raises(ModelError, match=f"the pipeline has no {part.partition('/')[0]}"):
        open_baseline("aurora", str(folder), "cpu").edit([task()])


def test_an_index_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("[1]")
    with pytest.raises(ModelError, match="these settings can't be read"):
        open_baseline("aurora", str(tmp_path))


def test_without_diffusers_it_says_what_to_install(pix2pix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"needs the package diffusers .pip install .earl-cli\[baselines\]"):
        open_baseline("aurora", str(pix2pix))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aurora", pytest.param("omnigen", marks=pytest.mark.full)])
def test_nothing_heavy_before_the_first_edit_and_no_chatter_in_it(name: str, pix2pix: Path, omnigen: Path) -> None:
    code = f"""
import sys
from PIL import Image
from earl_cli.evaluation import baselines
from earl_cli.evaluation.editors import EditTask
from dataclasses import replace
baselines.BASELINES = {{{name!r}: replace(baselines.BASELINES[{name!r}], steps=2, area=32 * 32)}}
editor = baselines.open_baseline({name!r}, {str(omnigen if name == "omnigen" else pix2pix)!r}, "cpu")
print([name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
print(editor.edit([EditTask("1", Image.new("RGB", (32, 32)), "make it snowy " * 100, 0)])[0].image.size)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("[]\n(32, 32)\n", "")
