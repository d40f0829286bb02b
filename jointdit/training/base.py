"""Stage 2: the base, a text-to-image FLUX on the scenes' pictures, its text encoders trained with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel

from jointdit.flow_matching import (
    NORMAL_SHIFT,
    add_noise,
    joint_flow_matching_loss,
    shift_noise_level,
    velocity_target,
)
from jointdit.latents import image_position_ids, text_position_ids
from jointdit.training.text import CaptionEncoder

UNIFORM_SHARE = 0.2  # of noise levels drawn evenly, so that nearly clean pictures are seen as well
EARLY_SHARE = 0.5  # of the base's noise levels: where a picture's layout and the colours of its surfaces are decided
EARLY_FROM = 0.85


def base_loss(
    flux: FluxTransformer2DModel,
    latents: torch.Tensor,
    text: CaptionEncoder,
    batch_size: int,
    drop: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Flow matching loss of a batch drawn from packed latents (N, tokens, 64)."""
    drawn = draw_pictures(latents, batch_size, generator, EARLY_SHARE)
    states, pooled = text.encode(drawn.places, drop, generator)
    prediction = flux(
        hidden_states=add_noise(drawn.clean, drawn.noise, drawn.t),
        timestep=drawn.t,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        img_ids=square_position_ids(drawn.clean.shape[1]),
        txt_ids=text_position_ids(states.shape[1]),
    ).sample
    return joint_flow_matching_loss(prediction, velocity_target(drawn.clean, drawn.noise))


class DrawnPictures(NamedTuple):
    """A batch of one modality."""

    places: torch.Tensor  # (B,) which of the latents they are
    clean: torch.Tensor  # (B, N, C) packed latents, float32
    noise: torch.Tensor  # (B, N, C)
    t: torch.Tensor  # (B,) noise levels


def draw_pictures(
    latents: torch.Tensor, batch_size: int, generator: torch.Generator, early: float = 0.0
) -> DrawnPictures:
    """Pictures of packed latents (M, N, C), each with its noise and noise level, a share `early` of them near 1."""
    places = torch.randint(len(latents), (batch_size,), generator=generator)
    clean = latents[places].float()
    noise = torch.randn(clean.shape, generator=generator)
    return DrawnPictures(places, clean, noise, base_timesteps(batch_size, generator, early))


def base_timesteps(n: int, generator: torch.Generator, early: float) -> torch.Tensor:
    """Noise levels (n,) of text-to-image training: shifted logit-normal, a fifth uniform; a share `early` near 1.

    Floors and walls get their colours in the first steps from pure noise, where text is all there is to go by.
    """
    normal = shift_noise_level(torch.sigmoid(torch.randn(n, generator=generator)), NORMAL_SHIFT)
    uniform = torch.rand(n, generator=generator)
    usual = torch.where(torch.rand(n, generator=generator) < UNIFORM_SHARE, uniform, normal)
    near_noise = EARLY_FROM + (1.0 - EARLY_FROM) * uniform
    return torch.where(torch.rand(n, generator=generator) < early, near_noise, usual)


def square_position_ids(tokens: int) -> torch.Tensor:
    """Position ids of a square picture's tokens."""
    side = int(tokens**0.5)
    assert side * side == tokens
    return image_position_ids(side, side)
