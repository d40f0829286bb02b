"""Rectified flow with one noise level per modality: schedule, noise levels, noising, loss.

The noise level t is 1 for noise and 0 for clean latents (the paper uses the opposite convention):

    x_t = (1 - t) x + t eps       the network predicts v = eps - x       a sampling step is x += (t_next - t) v
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

NORMAL_SHIFT = 3.1582  # exp(1.15): mu of 4096 image tokens
SMALL_SHIFT = 0.25


def shift_noise_level(t: torch.Tensor, shift: float) -> torch.Tensor:
    """Shift noise levels towards 1 (shift > 1) or 0 (shift < 1): s t / (1 + (s - 1) t), in t's shape."""
    return shift * t / (1 + (shift - 1) * t)


def sampling_schedule(
    num_inference_steps: int,
    image_tokens: int,
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_image_seq_len: int = 256,
    max_image_seq_len: int = 4096,
) -> torch.Tensor:
    """Return noise levels from 1 to 0, (num_inference_steps + 1,) float32 on the CPU.

    The levels are equally spaced and then shifted by exp(mu). mu is linear in the number of packed image tokens:
    0.5 at 256 tokens, 1.15 at 4096 (FLUX's get_schedule). The other arguments are of diffusers' schedulers.
    """
    mu = base_shift + (max_shift - base_shift) * (image_tokens - base_image_seq_len) / (
        max_image_seq_len - base_image_seq_len
    )
    t = torch.linspace(1, 0, num_inference_steps + 1)
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1))


def sample_timesteps(
    n: int, generator: torch.Generator | None = None, unbalanced: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw training noise levels of n pairs: RGB (n,) and depth (n,), float32 in [0, 1], on the generator's device.

    Each level is the sigmoid of a normal sample, shifted. Half of the pairs use one level with the normal shift for
    both modalities. In a quarter RGB has the normal shift and depth the small one, in the last quarter the reverse.

    With unbalanced=False, the baseline of the ablation, both levels of the other half have the normal shift.
    """
    device = generator.device if generator else None
    scenario = torch.randint(0, 4, (n,), generator=generator, device=device)
    first, second = torch.sigmoid(torch.randn(2, n, generator=generator, device=device))
    normal = shift_noise_level(first, NORMAL_SHIFT)
    small = shift_noise_level(second, SMALL_SHIFT if unbalanced else NORMAL_SHIFT)
    t_rgb = torch.where(scenario == 3, small, normal)
    t_depth = torch.where(scenario == 2, small, normal)
    return t_rgb, t_depth


def add_noise(latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return x_t = (1 - t) x + t eps, (N, ...), from latents and noise (N, ...) and noise levels (N,)."""
    t = t.to(latents).view(-1, *[1] * (latents.ndim - 1))
    return (1 - t) * latents + t * noise


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the target of the network, eps - x, in the shape of the latents."""
    return noise - latents


def joint_flow_matching_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the joint conditional flow matching loss, the float32 mean squared error over both halves (2B, ...)."""
    return functional.mse_loss(prediction.float(), target.float())
