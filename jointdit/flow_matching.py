"""Rectified flow with one noise level for each modality: schedule, timestep sampling, noising, loss.

The noise level t is 1 for noise and 0 for a clean latent (the paper writes it the other way round). x_t = (1 - t) x +
t eps, the network predicts eps - x, and a sampling step is x += (t_next - t) v.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

NORMAL_SHIFT = 3.1582  # exp(1.15): mu of 4096 image tokens
SMALL_SHIFT = 0.25


def shift_noise_level(t: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels towards 1 (shift > 1) or 0 (shift < 1): s t / (1 + (s - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def sampling_schedule(num_inference_steps: int, image_tokens: int) -> torch.Tensor:
    """Noise levels from 1 to 0, (num_inference_steps + 1,) float32 on the CPU.

    linspace shifted by mu, which grows linearly with the number of packed image tokens: 256 -> 0.5, 4096 -> 1.15
    (FLUX's get_schedule).
    """
    mu = 0.5 + (1.15 - 0.5) * (image_tokens - 256) / (4096 - 256)
    t = torch.linspace(1, 0, num_inference_steps + 1)
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1))


def sample_timesteps(
    n: int, generator: torch.Generator | None = None, unbalanced: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unbalanced training noise levels of n pairs: RGB (n,) and depth (n,), in [0, 1], float32 where the generator is.

    sigmoid of a normal draw, shifted. Half of the pairs share one level from the normal shift; in a quarter RGB comes
    from the normal and depth from the small shift; in a quarter the reverse. Each pair draws its own scenario.

    Without `unbalanced`, what it is compared with: the other half of the pairs draw two levels, both from the normal
    shift.
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
    """x_t = (1 - t) x + t eps for latents and noise (N, ...) and noise levels (N,)."""
    t = t.to(latents).view(-1, *[1] * (latents.ndim - 1))
    return (1 - t) * latents + t * noise


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the network predicts: eps - x."""
    return noise - latents


def joint_flow_matching_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Joint conditional flow matching loss: float32 mean squared error over both halves (2B, ...), equally weighted."""
    return functional.mse_loss(prediction.float(), target.float())
