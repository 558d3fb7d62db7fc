"""Our still-image path against transformers' own `Emu3VQVAE`: the same bits, for every temporal factor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from earl_cli.errors import InputError
from earl_cli.models import vision


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Kernels split among threads round by the split, so the bits are compared on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_model(temporal: int = 1, seed: int = 0, **changes: object) -> Emu3VQVAE:
    torch.manual_seed(seed)
    config = {
        "codebook_size": 64,
        "embed_dim": 4,
        "latent_channels": 4,
        "temporal_downsample_factor": temporal,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [3],
        "hidden_size": 64,
        "num_attention_heads": 1,
    }
    model = Emu3VQVAE(Emu3VQVAEConfig(**(config | changes))).eval()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm3d)):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
    return model


def reference_codes(model: Emu3VQVAE, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(model.encode(pixels, torch.tensor([pixels.shape[-2:]] * len(pixels))).image_tokens)


CONFIGS = {
    "factor 1": {"temporal": 1},
    "factor 2": {"temporal": 2},
    "factor 4": {"temporal": 4},
    "two blocks": {"temporal": 4, "num_res_blocks": 2},
    "no attention": {"temporal": 1, "attn_resolutions": []},
    "wide latent": {"temporal": 2, "latent_channels": 8, "embed_dim": 8},
    "codes of 4 pixels": {"temporal": 1, "channel_multiplier": [1, 1, 2], "attn_resolutions": [2]},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [(2, 24, 16), (1, 32, 40), (1, 29, 23), (1, 8, 8), (5, 16, 16)])
def test_codes_and_pixels_are_transformers_own(changes: dict, size: tuple[int, int, int]) -> None:
    model = small_model(**changes)
    batch, height, width = size
    pixels = torch.rand(batch, 3, height, width) * 2 - 1
    codes = vision.encode(model, pixels)
    factor = vision.spatial_factor(model)
    assert codes.dtype == torch.int64
    assert codes.shape == (batch, height // factor, width // factor)
    assert torch.equal(codes, reference_codes(model, pixels))
    random_codes = torch.randint(0, 64, codes.shape)
    with torch.no_grad():
        expected = model.decode(random_codes)
    assert torch.equal(vision.decode(model, random_codes), expected)


@pytest.mark.full
@pytest.mark.slow
def test_full_config_is_bit_identical() -> None:
    torch.manual_seed(0)
    model = Emu3VQVAE(Emu3VQVAEConfig()).eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(270.7e6, rel=1e-3)
    pixels = torch.rand(1, 3, 64, 48) * 2 - 1
    codes = vision.encode(model, pixels)
    assert torch.equal(codes, reference_codes(model, pixels))
    with torch.no_grad():
        assert torch.equal(vision.decode(model, codes), model.decode(codes))


def test_quantize_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    latent = vision.latents(model, torch.rand(5, 3, 16, 24) * 2 - 1).detach()
    whole = vision.quantize(model, latent)
    monkeypatch.setattr(vision, "MAX_DISTANCES", 2 * 6 * 64)
    assert torch.equal(vision.quantize(model, latent), whole)


def test_a_code_quantizes_to_itself() -> None:
    model = small_model()
    codes = torch.randint(0, 64, (2, 3, 5))
    assert torch.equal(vision.quantize(model, vision.embed_codes(model, codes)), codes)


@pytest.mark.parametrize("temporal", [1, 4])
def test_gradients_reach_every_weight_of_a_training_step(temporal: int) -> None:
    model = small_model(temporal).requires_grad_(True)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    latent = vision.latents(model, pixels)
    nearest = vision.embed_codes(model, vision.quantize(model, latent))
    straight_through = latent + (nearest - latent).detach()
    loss = (vision.decode_latents(model, straight_through) - pixels).square().mean()
    (loss + (nearest - latent).square().mean()).backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing == []


def test_encode_and_decode_keep_no_graph() -> None:
    model = small_model().requires_grad_(True)
    assert not vision.decode(model, vision.encode(model, torch.zeros(1, 3, 8, 8))).requires_grad


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 16, 16), (1, 3, 7, 16)])
def test_wrong_pixels_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        vision.encode(small_model(), torch.zeros(shape))


@pytest.mark.parametrize("codes", [torch.full((1, 2, 2), 64), torch.full((1, 2, 2), -1), torch.zeros(2, 2).long()])
def test_wrong_codes_are_named(codes: torch.Tensor) -> None:
    with pytest.raises(InputError, match="codes"):
        vision.decode(small_model(), codes)


def test_images_to_pixels_and_back_lose_nothing() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    levels[0, 0, :2] = [[0, 0, 0], [255, 255, 255]]
    pixels = vision.pixels_of([Image.fromarray(array) for array in levels])
    assert pixels.shape == (2, 3, 16, 24)
    assert (pixels.min().item(), pixels.max().item()) == (-1.0, 1.0)
    assert np.array_equal(np.stack(vision.images_of(pixels)), levels)
    beyond = np.stack(vision.images_of(pixels * 1000))
    assert set(np.unique(beyond)) == {0, 255}


def test_images_of_two_sizes_are_no_batch() -> None:
    with pytest.raises(InputError, match="one size"):
        vision.pixels_of([Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))])
