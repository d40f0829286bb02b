"""Stage 3: guidance distillation, which replaces classifier-free guidance.

As in FLUX.1-dev, guidance is an input of the network, like the noise level. Method: Meng et al., "On Distillation of
Guided Diffusion Models" (arXiv 2210.03142), stage one.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel

from jointdit.flow_matching import add_noise, joint_flow_matching_loss
from jointdit.model.latents import text_position_ids
from jointdit.tiny.base import draw_images, square_position_ids
from jointdit.tiny.text import CaptionEncoder

LOWEST, HIGHEST = 1.0, 5.0  # range of uniform guidance in half of a batch; it is 1 (no guidance) in the other half


def with_guidance_embedding(flux: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Copy a network without guidance and add a guidance embedding that has no effect before training."""
    student: FluxTransformer2DModel = FluxTransformer2DModel.from_config({**flux.config, "guidance_embeds": True})
    student.load_state_dict(flux.state_dict(), strict=False)
    embedding = student.time_text_embed.guidance_embedder.linear_2
    torch.nn.init.zeros_(embedding.weight)
    torch.nn.init.zeros_(embedding.bias)
    return student


def guidance_loss(
    student: FluxTransformer2DModel,
    teacher: FluxTransformer2DModel,
    latents: torch.Tensor,
    text: CaptionEncoder,
    batch_size: int,
    drop: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the mean squared distance to the teacher's guided velocity, empty + guidance (prompt - empty).

    The batch is drawn from packed latents (N, tokens, 64). With a dropped caption both velocities are equal, and
    guidance must have no effect.

    The adapter is trained on this network at guidance 1. If the network is poor there, the joint connections learn to
    correct it, which degrades images sampled at 3.5. So half of each batch has guidance 1, where the target is the
    prompted velocity.
    """
    index, clean, noise, t = draw_images(latents, batch_size, generator)
    plain = batch_size // 2  # images at guidance 1 come first
    guidance = torch.ones(batch_size, device=t.device)
    uniform = torch.rand(batch_size - plain, generator=generator, device=t.device)
    guidance[plain:] = LOWEST + (HIGHEST - LOWEST) * uniform
    noisy = add_noise(clean, noise, t)
    ids = {"img_ids": square_position_ids(clean.shape[1], t.device)}
    with torch.no_grad():
        states, pooled = text.encode(index, drop, generator)
        empty_states, empty_pooled = text.encode(index[plain:], 1.0, generator)
        ids["txt_ids"] = text_position_ids(states.shape[1], t.device)
        prompted, empty = teacher(
            hidden_states=torch.cat([noisy, noisy[plain:]]),
            timestep=torch.cat([t, t[plain:]]),
            encoder_hidden_states=torch.cat([states, empty_states]),
            pooled_projections=torch.cat([pooled, empty_pooled]),
            **ids,
        ).sample.split([batch_size, batch_size - plain])
        target = prompted.clone()
        target[plain:] = empty + guidance[plain:, None, None] * (prompted[plain:] - empty)
    prediction = student(
        hidden_states=noisy,
        timestep=t,
        guidance=guidance,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        **ids,
    ).sample
    return joint_flow_matching_loss(prediction, target)
