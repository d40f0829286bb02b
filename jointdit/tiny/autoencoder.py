"""Stage 1: the autoencoder on images and disparity maps, then its decoder alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from jointdit.tiny.data import ScenePixels

KL_WEIGHT = 2e-7
OPPONENT_WEIGHT = 1.0
EDGE_WEIGHT = 0.5


def vae_loss(vae: AutoencoderKL, scenes: ScenePixels, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Return L1 + L2 on pixels and opponent colours, L1 on edges, and a small KL term.

    Without the opponent colours a small autoencoder loses red and purple, because few objects use that colour axis and
    its mean error is small.
    """
    pixels = draw_pixels(scenes, batch_size, generator)
    posterior = vae.encode(pixels).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator, device=pixels.device)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    error = decoded - pixels
    chroma = opponent(error)
    edges = F.l1_loss(_edges(decoded), _edges(pixels))
    reconstruction = error.abs().mean() + 2 * error.square().mean()
    colour = chroma.abs().mean() + 2 * chroma.square().mean()
    return reconstruction + OPPONENT_WEIGHT * colour + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().mean()


def decoder_loss(vae: AutoencoderKL, scenes: ScenePixels, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Return L2 on pixels and opponent colours, decoded from the posterior's mode, which improves PSNR.

    The encoder is not trained, so the latents of the transformer's stages do not change.
    """
    pixels = draw_pixels(scenes, batch_size, generator)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
    error = vae.decode(latents).sample.float() - pixels
    return error.square().mean() + 0.5 * opponent(error).square().mean() + 0.02 * error.abs().mean()


def draw_pixels(scenes: ScenePixels, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a batch (B, 3, H, W) in [-1, 1]: two thirds images, one third disparity maps, half of them mirrored."""
    device = scenes.device
    index = torch.randint(len(scenes), (batch_size,), generator=generator, device=device)
    maps = max(1, batch_size // 3)
    pixels = torch.cat([scenes.disparities(index[:maps]), scenes.images(index[maps:])])
    flip = torch.rand(batch_size, generator=generator, device=device) < 0.5
    return torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)


def opponent(colour: torch.Tensor) -> torch.Tensor:
    """Return red - green and (red + green) / 2 - blue of RGB (B, 3, H, W), as (B, 2, H, W)."""
    red, green, blue = colour.unbind(1)
    return torch.stack([red - green, (red + green) / 2 - blue], dim=1)


def _edges(pixels: torch.Tensor) -> torch.Tensor:
    across = pixels[..., 1:, 1:] - pixels[..., 1:, :-1]
    down = pixels[..., 1:, 1:] - pixels[..., :-1, 1:]
    return torch.cat([across, down], dim=1)


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, scenes: ScenePixels, count: int = 256) -> None:
    """Fold the latents' per-channel mean and standard deviation into quant_conv and post_quant_conv, in place.

    Afterwards the latents of images and disparity maps together have mean 0 and deviation 1 in each channel. Decoded
    images do not change.
    """
    pixels = torch.cat([scenes.images(slice(count)), scenes.disparities(slice(count))])
    moments = [vae.encode(batch).latent_dist for batch in pixels.split(32)]
    latents = torch.cat([posterior.mean for posterior in moments])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant is not None
    assert post is not None
    post.bias.add_(post.weight[:, :, 0, 0] @ mean)
    post.weight.mul_(deviation[None, :, None, None])
    quant.weight[:channels].div_(deviation[:, None, None, None])
    quant.bias[:channels].sub_(mean).div_(deviation)
    quant.bias[channels:].sub_(2 * deviation.log())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Encode and decode pixels (B, 3, H, W) in [-1, 1], with the mode of the posterior."""
    decoded = [vae.decode(vae.encode(batch).latent_dist.mode()).sample for batch in pixels.split(32)]
    return torch.cat(decoded).clamp(-1, 1)
