"""VAE latents of images, 2x2 packing into tokens, position ids, seeded noise.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, H/f, W/f) with C = 16 channels and a downsampling f = 8 for
FLUX's VAE; packed latents (B, N, 4C) with N = H/2f * W/2f tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL

from jointdit.model.precision import without_tf32


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """Pack (B, C, h, w) to (B, h/2 * w/2, 4C): tokens row by row, channels in order (c, patch row, patch column)."""
    b, c, h, w = latents.shape
    patches = latents.view(b, c, h // 2, 2, w // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack_latents(packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Unpack (B, h/2 * w/2, 4C) to (B, C, h, w); height and width are h and w of the latents."""
    b, _, c4 = packed.shape
    patches = packed.view(b, height // 2, width // 2, c4 // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c4 // 4, height, width)


def image_position_ids(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Return position ids (0, row, column) of height x width image tokens, (height * width, 3) float32."""
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None, :]
    return ids.view(height * width, 3)


def text_position_ids(tokens: int, device: torch.device | None = None) -> torch.Tensor:
    """Return position ids of text tokens, zeros (tokens, 3)."""
    return torch.zeros(tokens, 3, device=device)


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Return standard normal noise (len(seeds), *shape), float32 on the CPU, one generator per sample.

    The noise of a sample does not depend on its batch, worker or device.
    """
    return torch.stack(
        [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    )


def drawn_noise(
    generator: torch.Generator | Sequence[torch.Generator] | None, samples: int, shape: Sequence[int]
) -> torch.Tensor:
    """Return standard normal noise (samples, *shape) float32, drawn sample after sample on the generator's device.

    generator: one per sample, one for all, or None for torch's global one.
    """
    generators = generator if isinstance(generator, Sequence) else [generator] * samples
    return torch.stack(
        [
            torch.randn(tuple(shape), generator=each, device="cpu" if each is None else each.device).cpu()
            for each in generators
        ]
    )


def encode_image(
    vae: AutoencoderKL, images: torch.Tensor, noise: torch.Tensor | None = None, allow_tf32: bool = False
) -> torch.Tensor:
    """Encode images (B, 3, H, W) in [-1, 1] to latents scale * (z - shift), (B, C, H/f, W/f) float32.

    z is the posterior's mean (its mode), or mean + std * noise if noise (B, C, H/f, W/f) is given. Scale and shift
    come from the VAE's config: 0.3611 and 0.1159 for FLUX's. allow_tf32: use PyTorch's setting instead of full float32.
    """
    with without_tf32(not allow_tf32):
        posterior = vae.encode(images.to(vae.dtype)).latent_dist
    z = posterior.mean.float()
    if noise is not None:
        z = z + posterior.std.float() * noise.to(z)
    return (z - _shift(vae)) * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor, allow_tf32: bool = False) -> torch.Tensor:
    """Decode latents (B, C, H/f, W/f) to images (B, 3, H, W), about [-1, 1], float32.

    allow_tf32: use PyTorch's setting instead of full float32.
    """
    z = latents / vae.config.scaling_factor + _shift(vae)
    with without_tf32(not allow_tf32):
        images: torch.Tensor = vae.decode(z.to(vae.dtype)).sample.float()
    return images


def _shift(vae: AutoencoderKL) -> float:
    return vae.config.shift_factor or 0.0
