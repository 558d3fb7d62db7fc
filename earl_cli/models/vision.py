"""The VQ tokenizer between pixels and codes; encoding a still image takes one frame's work, with transformers' bits.

`Emu3VQVAE` is a video model. For a still image transformers runs its whole spatial encoder on equal frames (as many as
`temporal_downsample_factor`), and its spatial decoder on as many frames, of which it keeps the first. Here the spatial
halves run once: the latent is repeated just before the temporal convolutions, and frame 0 is kept right after them.
The bits are transformers' own on a CPU with one thread; on more threads or a GPU the last bit of a pixel may differ,
because kernels there split sums by the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from earl_cli.errors import InputError
from earl_cli.models import names
from earl_cli.models.checkpoint import build_empty_model, load_weights, open_checkpoint, write_checkpoint
from earl_cli.models.hub import locate
from earl_cli.models.names import CheckpointFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import Emu3VQVAE

MAX_DISTANCES = 1 << 27
"""How many position-to-code distances `quantize` holds at once (0.5 GB in float32)."""


def spatial_factor(model: Emu3VQVAE) -> int:
    """Pixels a code is wide and high: 8 for the published tokenizer."""
    return int(model.spatial_scale_factor)


def latents(model: Emu3VQVAE, pixels: Tensor) -> Tensor:
    """Latents before quantisation, differentiable.

    ``pixels`` is Float[B, 3, H, W] in [-1, 1]; sides are cut to multiples of the spatial factor.
    Returns Float[B, embed_dim, H//factor, W//factor]. Raises InputError for any other shape or an image smaller than
    one code.
    """
    factor = spatial_factor(model)
    if pixels.ndim != 4 or pixels.shape[1] != model.config.in_channels or min(pixels.shape[-2:]) < factor:
        raise InputError(
            f"pixels have the shape {tuple(pixels.shape)}; "
            f"[batch, {model.config.in_channels}, height >= {factor}, width >= {factor}] is needed"
        )
    encoder = model.encoder
    with _kernels_for_all_frames(model):
        hidden = encoder.middle_block(encoder.down_block(encoder.conv_in(pixels.to(model.dtype))))
        hidden = encoder.conv_out(_swish(encoder.norm_out(hidden)))
    hidden = hidden.unsqueeze(2).repeat(1, 1, model.config.temporal_downsample_factor, 1, 1)
    for conv in encoder.time_conv:
        hidden = _swish(conv(hidden))
    for layer in encoder.time_res_stack:
        hidden = layer(hidden)
    latent: Tensor = model.quant_conv(hidden).squeeze(2)
    return latent


def quantize(model: Emu3VQVAE, latent: Tensor) -> Tensor:
    """The nearest code of each latent: Float[B, embed_dim, h, w] to Int64[B, h, w], in chunks of the batch."""
    positions = latent.shape[-1] * latent.shape[-2]
    images = max(1, MAX_DISTANCES // (positions * model.config.codebook_size))
    frames = latent.unsqueeze(1)
    return torch.cat([model.quantize(part).squeeze(1) for part in torch.split(frames, images)])


def embed_codes(model: Emu3VQVAE, codes: Tensor) -> Tensor:
    """The latents that codes stand for: Int[B, h, w] to Float[B, embed_dim, h, w], differentiable in the codebook."""
    embedded: Tensor = model.quantize.embedding(codes)
    return embedded.permute(0, 3, 1, 2).contiguous()


def decode_latents(model: Emu3VQVAE, z: Tensor) -> Tensor:
    """Pixels of quantised latents, differentiable.

    ``z`` is Float[B, embed_dim, h, w], as from `embed_codes`. Returns Float[B, 3, 8h, 8w], not clamped to [-1, 1].
    """
    decoder = model.decoder
    quant = z.unsqueeze(2)
    both = torch.cat((model.post_quant_conv(quant), quant))
    for layer in decoder.time_res_stack:
        both = layer(both)
    for conv in decoder.time_conv:
        both = _swish(conv(both))
    hidden, states = both[:, :, 0].contiguous().chunk(2)
    with _kernels_for_all_frames(model):
        hidden = decoder.middle_block(decoder.conv_in(hidden), states)
        hidden = decoder.norm_out(decoder.up_block(hidden, states), states)
        pixels: Tensor = decoder.conv_out(_swish(hidden))
    return pixels


@torch.no_grad()
def encode(model: Emu3VQVAE, pixels: Tensor) -> Tensor:
    """Codes Int64[B, H//factor, W//factor] of images Float[B, 3, H, W] in [-1, 1], equal to ``model.encode``'s."""
    return quantize(model, latents(model, pixels.to(model.device)))


@torch.no_grad()
def decode(model: Emu3VQVAE, codes: Tensor) -> Tensor:
    """Still images of codes: Int[B, h, w] to Float[B, 3, 8h, 8w], not clamped, equal to ``model.decode``'s.

    Raises InputError for another shape and for codes outside the codebook.
    """
    if codes.ndim != 3 or codes.numel() == 0:
        raise InputError(f"codes have the shape {tuple(codes.shape)}; [batch, height, width] is needed")
    lowest, highest = int(codes.min()), int(codes.max())
    if lowest < 0 or highest >= model.config.codebook_size:
        raise InputError(
            f"codes run from {lowest} to {highest}, but the codebook has {model.config.codebook_size} entries",
            hint="the tokens belong to another vision tokenizer",
        )
    return decode_latents(model, embed_codes(model, codes.to(model.device)))


def pixels_of(
    images: Sequence[Image.Image | NDArray[np.uint8]],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A batch Float[B, 3, H, W] in [-1, 1] for `encode`, from images of one size or arrays uint8[H, W, 3].

    Raises InputError if the sizes differ.
    """
    arrays = [np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image) for image in images]
    sizes = {(array.shape[1], array.shape[0]) for array in arrays}
    if len(sizes) != 1:
        raise InputError(f"a batch needs images of one size, not {sorted(sizes)}")
    pixels = torch.from_numpy(np.stack(arrays)).to(device).permute(0, 3, 1, 2).contiguous().to(torch.float32)
    return (pixels / 127.5 - 1.0).to(dtype)


def images_of(pixels: Tensor) -> list[NDArray[np.uint8]]:
    """Float[B, 3, H, W] in [-1, 1] (clamped) to B arrays uint8[H, W, 3], rounded to the nearest level."""
    levels = ((pixels.detach().float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _swish(hidden: Tensor) -> Tensor:
    """x · sigmoid(x), in this form: `silu` rounds differently from the model's own code."""
    return hidden * torch.sigmoid(hidden)


def _kernels_for_all_frames(model: Emu3VQVAE) -> AbstractContextManager[object]:
    frames = int(model.config.temporal_downsample_factor)
    return _KernelsFor(frames) if frames > 1 and model.device.type == "cpu" else nullcontext()


class _KernelsFor(TorchFunctionMode):
    """Gives one frame the kernels that torch would choose for ``frames`` of them.

    On CPUs torch convolves small batches on a plain kernel and larger ones on oneDNN, which rounds differently; so does
    a product with a single row.
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) == 7:
            pixels, weight, bias, stride, padding, dilation, groups = args
            settings = (weight, bias, stride, padding, dilation, False, (0, 0), groups, None)
            batch = pixels[:1].expand(self.frames * len(pixels), -1, -1, -1)
            chosen, usual = (torch._C._select_conv_backend(images, *settings).name for images in (batch, pixels))
            if chosen == "Mkldnn" != usual:
                return torch.mkldnn_convolution(pixels, weight, bias, padding, stride, dilation, groups)
        if func is torch.nn.functional.linear and not kwargs and args[0].shape[:-1].numel() == 1:
            rows = args[0].expand(self.frames, *args[0].shape[1:])
            return func(rows, *args[1:])[:1]
        return func(*args, **(kwargs or {}))


def load_vision(
    source: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Emu3VQVAE:
    """The tokenizer in a folder or at a Hub id ``org/name[@revision]``, in eval mode and without gradients.

    Reads the original layout, the native one, and the vision half of a combined native model. Raises ModelError if the
    folder holds something else or is damaged.
    """
    checkpoint = open_checkpoint(locate(source, revision), "vision")
    from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    model = build_empty_model(checkpoint, Emu3VQVAEConfig, Emu3VQVAE)
    load_weights(model, checkpoint, device, dtype)
    model.config.dtype = dtype
    return model.eval().requires_grad_(False)


def save_vision(model: Emu3VQVAE, folder: Path, layout: CheckpointFormat = "native") -> None:
    """Writes config.json and model.safetensors. Raises OutputError if the disk doesn't take it."""
    state = model.state_dict()
    config = {**model.config.to_dict(), "architectures": ["Emu3VQVAE"]}
    if layout == "original":
        shaped = {name: w[:, :, None, None] if names.is_projection(name) else w for name, w in state.items()}
        state = {names.original_vision_name(name): weight for name, weight in shaped.items()}
        config = names.original_vision_config(config)
    config["dtype" if layout == "native" else "torch_dtype"] = str(model.dtype).removeprefix("torch.")
    write_checkpoint(folder, config, state)
