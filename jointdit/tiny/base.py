"""Stage 2: a text-to-image FLUX on the scenes' images, trained with its text encoders."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel

from jointdit.flow_matching import NORMAL_SHIFT, add_noise, joint_flow_matching_loss, shift_noise_level, velocity_target
from jointdit.model.latents import image_position_ids, text_position_ids
from jointdit.tiny.text import CaptionEncoder

UNIFORM_SHARE = 0.2  # share of uniform noise levels, which include nearly clean images
EARLY_SHARE, EARLY = 0.25, (0.85, 1.0)  # share and range of noise levels that decide layout and colours of surfaces
MIDDLE_SHARE, MIDDLE = 0.4, (0.5, 0.9)  # share and range of noise levels that decide objects


def base_loss(
    flux: FluxTransformer2DModel,
    latents: torch.Tensor,
    text: CaptionEncoder,
    batch_size: int,
    drop: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the flow matching loss of a batch drawn from packed latents (N, tokens, 64)."""
    drawn = draw_images(latents, batch_size, generator, where_text_decides=True)
    states, pooled = text.encode(drawn.places, drop, generator)
    prediction = flux(
        hidden_states=add_noise(drawn.clean, drawn.noise, drawn.t),
        timestep=drawn.t,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        img_ids=square_position_ids(drawn.clean.shape[1], states.device),
        txt_ids=text_position_ids(states.shape[1], states.device),
    ).sample
    return joint_flow_matching_loss(prediction, velocity_target(drawn.clean, drawn.noise))


class DrawnImages(NamedTuple):
    """A batch of one modality."""

    places: torch.Tensor  # (B,) indices into the latents
    clean: torch.Tensor  # (B, N, C) packed latents, float32
    noise: torch.Tensor  # (B, N, C)
    t: torch.Tensor  # (B,) noise levels


def draw_images(
    latents: torch.Tensor, batch_size: int, generator: torch.Generator, where_text_decides: bool = False
) -> DrawnImages:
    """Draw images from packed latents (M, N, C), with noise and with noise levels of `base_timesteps`.

    All tensors are on the generator's device, which must be that of the latents.
    """
    device = generator.device
    places = torch.randint(len(latents), (batch_size,), generator=generator, device=device)
    clean = latents[places].float()
    noise = torch.randn(clean.shape, generator=generator, device=device)
    return DrawnImages(places, clean, noise, base_timesteps(batch_size, generator, where_text_decides))


def base_timesteps(n: int, generator: torch.Generator, where_text_decides: bool) -> torch.Tensor:
    """Draw noise levels (n,) of text-to-image training: shifted logit-normal, a fifth of them uniform.

    where_text_decides: draw most of them from EARLY and MIDDLE instead. Floors and walls get their colours in the first
    steps from pure noise, where only the text gives information, and objects soon after.
    """

    def drawn() -> torch.Tensor:
        return torch.rand(n, generator=generator, device=generator.device)

    logits = torch.randn(n, generator=generator, device=generator.device)
    normal = shift_noise_level(torch.sigmoid(logits), NORMAL_SHIFT)
    uniform = drawn()
    usual = torch.where(drawn() < UNIFORM_SHARE, uniform, normal)
    if not where_text_decides:
        return usual
    early, middle = (low + (high - low) * uniform for low, high in (EARLY, MIDDLE))
    kind = drawn()
    return torch.where(kind < EARLY_SHARE, early, torch.where(kind < EARLY_SHARE + MIDDLE_SHARE, middle, usual))


def square_position_ids(tokens: int, device: torch.device | None = None) -> torch.Tensor:
    """Return position ids (tokens, 3) of a square image."""
    side = int(tokens**0.5)
    assert side * side == tokens
    return image_position_ids(side, side, device)
