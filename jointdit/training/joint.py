"""Stage 3: JointDiT. Base and text encoders are frozen; LoRA on the depth half and the joint connections learn."""

from __future__ import annotations

import torch

from jointdit.flow_matching import add_noise, joint_flow_matching_loss, sample_timesteps, velocity_target
from jointdit.latents import text_position_ids
from jointdit.training.base import square_position_ids
from jointdit.training.text import CaptionEncoder
from jointdit.transformer import JointDiTTransformer2DModel

TRAINING_GUIDANCE = 1.0


def joint_loss(
    model: JointDiTTransformer2DModel,
    rgb: torch.Tensor,
    disparity: torch.Tensor,
    text: CaptionEncoder,
    batch_size: int,
    drop: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Joint flow matching loss of `batch_size` pairs drawn from packed latents (N, tokens, 64) of both modalities."""
    index = torch.randint(len(rgb), (batch_size,), generator=generator)
    clean = torch.cat([rgb[index].float(), disparity[index].float()])
    noise = torch.randn(clean.shape, generator=generator)
    t = torch.cat(sample_timesteps(batch_size, generator))
    with torch.no_grad():
        states, pooled = text.encode(index, drop, generator)
    guidance = torch.full_like(t, TRAINING_GUIDANCE) if model.config.guidance_embeds else None
    prediction = model(
        hidden_states=add_noise(clean, noise, t),
        timestep=t,
        guidance=guidance,
        encoder_hidden_states=torch.cat([states, states]),
        pooled_projections=torch.cat([pooled, pooled]),
        img_ids=square_position_ids(clean.shape[1]),
        txt_ids=text_position_ids(states.shape[1]),
    ).sample
    return joint_flow_matching_loss(prediction, velocity_target(clean, noise))
