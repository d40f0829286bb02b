"""The loss of joint flow matching on noisy pairs, for the tiny checkpoint and for adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from jointdit.flow_matching import add_noise, joint_flow_matching_loss, velocity_target
from jointdit.model.latents import text_position_ids
from jointdit.model.transformer import JointDiTTransformer2DModel

TRAINING_GUIDANCE = 1.0


def dropped_share(
    t_rgb: torch.Tensor, t_disparity: torch.Tensor, drop: float, drop_depth: float | None
) -> torch.Tensor:
    """Share (B,) of dropped captions: drop_depth where the image is cleaner than its depth, drop elsewhere.

    Depth is estimated with the empty prompt and from a clean image; joint samples and depth-to-image have a caption.
    None: drop everywhere, as in the paper.
    """
    return torch.where(t_rgb < t_disparity, drop if drop_depth is None else drop_depth, drop)


class NoisyPairs(NamedTuple):
    """Pairs, noised and described. All RGB rows come first, then all depth rows."""

    clean: torch.Tensor  # (2B, N, C) packed latents
    noise: torch.Tensor  # (2B, N, C)
    t: torch.Tensor  # (2B,) noise levels
    states: torch.Tensor  # (B, T, D) of T5, for both halves
    pooled: torch.Tensor  # (B, P) of CLIP, for both halves


def velocity_loss(
    model: JointDiTTransformer2DModel, forward: Callable[..., Any], pairs: NoisyPairs, img_ids: torch.Tensor
) -> torch.Tensor:
    """Joint flow matching loss of a batch. forward: the model, or what wraps it. img_ids (N, 3). Guidance is 1."""
    clean, noise, t, states, pooled = pairs
    guidance = torch.full_like(t, TRAINING_GUIDANCE) if model.config.guidance_embeds else None
    prediction = forward(
        hidden_states=add_noise(clean, noise, t),
        timestep=t,
        guidance=guidance,
        encoder_hidden_states=torch.cat([states, states]),
        pooled_projections=torch.cat([pooled, pooled]),
        img_ids=img_ids,
        txt_ids=text_position_ids(states.shape[1], states.device),
    ).sample
    return joint_flow_matching_loss(prediction, velocity_target(clean, noise))
