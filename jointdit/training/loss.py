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
    """Return the probability (B,) of dropping a caption: drop_depth if the image is cleaner than its depth, else drop.

    Depth is estimated with the empty prompt from a clean image; joint samples and depth-to-image have a caption.
    drop_depth None means drop for all pairs, as in the paper.
    """
    return torch.where(t_rgb < t_disparity, drop if drop_depth is None else drop_depth, drop)


class NoisyPairs(NamedTuple):
    """A batch of B pairs: latents, noise and text embeddings. RGB rows come first, then depth rows."""

    clean: torch.Tensor  # (2B, N, C) packed latents
    noise: torch.Tensor  # (2B, N, C)
    t: torch.Tensor  # (2B,) noise levels
    states: torch.Tensor  # (B, T, D) of T5, for both halves
    pooled: torch.Tensor  # (B, P) of CLIP, for both halves


def velocity_loss(
    model: JointDiTTransformer2DModel, forward: Callable[..., Any], pairs: NoisyPairs, img_ids: torch.Tensor
) -> torch.Tensor:
    """Return the joint flow matching loss of a batch, at guidance 1.

    forward: the model or its wrapper (DDP). img_ids: (N, 3).
    """
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
