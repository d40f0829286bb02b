"""Stage 4: the JointDiT adapter; base and text encoders are frozen."""

from __future__ import annotations

import torch

from jointdit.flow_matching import sample_timesteps
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.tiny.base import square_position_ids
from jointdit.tiny.text import CaptionEncoder
from jointdit.training.loss import NoisyPairs, dropped_share, velocity_loss


def joint_loss(
    model: JointDiTTransformer2DModel,
    rgb: torch.Tensor,
    disparity: torch.Tensor,
    text: CaptionEncoder,
    batch_size: int,
    drop: float,
    drop_depth: float | None,
    generator: torch.Generator,
    unbalanced: bool = True,
) -> torch.Tensor:
    """Return the joint flow matching loss of pairs drawn from packed latents (N, tokens, 64) of both modalities.

    drop, drop_depth: shares of dropped captions, see `dropped_share`.
    """
    device = generator.device
    index = torch.randint(len(rgb), (batch_size,), generator=generator, device=device)
    clean = torch.cat([rgb[index].float(), disparity[index].float()])
    noise = torch.randn(clean.shape, generator=generator, device=device)
    levels = sample_timesteps(batch_size, generator, unbalanced)
    with torch.no_grad():
        states, pooled = text.encode(index, dropped_share(*levels, drop, drop_depth), generator)
    pairs = NoisyPairs(clean, noise, torch.cat(levels), states, pooled)
    return velocity_loss(model, model, pairs, square_position_ids(clean.shape[1], device))
