"""Radial power spectra of both branches' latents over the sampling steps.

The paper finds that the depth branch carries structure and the RGB branch texture. Structure has low frequencies and
texture high ones, so the spectra of the estimate of the clean latents, x_t - t v, and of the velocity v are measured at
each step in each branch. Velocities contain the noise (v = noise - clean) with its flat spectrum, so the clean
estimates are more informative.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.flow_matching import sampling_schedule
from jointdit.model.latents import unpack_latents

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline

FloatArray = NDArray[np.float64]
BRANCHES = ("rgb", "depth")


@dataclass(frozen=True)
class BranchSpectra:
    """Noise level before each step (S,), and spectra (S, R) of the clean estimate and the velocity by branch.

    Row s holds the mean power per frequency at radius 0 to R - 1 cycles per image, without the constant part. `counts`
    (R,) is the number of frequencies at each radius.
    """

    noise_level: FloatArray
    clean: dict[str, FloatArray]
    velocity: dict[str, FloatArray]
    counts: FloatArray

    def high_share(self, branch: str, of: str = "clean") -> FloatArray:
        """Return the share (S,) of the energy above half the highest radius; `of` is "clean" or "velocity"."""
        energy = getattr(self, of)[branch] * self.counts
        half = energy.shape[1] // 2
        return np.asarray(energy[:, half + 1 :].sum(axis=1) / energy[:, 1:].sum(axis=1))

    def settled_at(self, branch: str, high: bool, within: float = 0.1) -> int:
        """Return the number of steps until the energy of the clean estimate stays within a share of its last value.

        high: whether the energy above half the highest radius counts, or below it. within: the share.
        """
        energy = self.clean[branch] * self.counts
        half = energy.shape[1] // 2
        band = energy[:, half + 1 :].sum(axis=1) if high else energy[:, 1 : half + 1].sum(axis=1)
        far = np.flatnonzero(np.abs(band / band[-1] - 1) > within)
        return int(far[-1]) + 2 if len(far) else 1


def record_spectra(
    pipe: JointDiTPipeline, prompts: Sequence[str], num_inference_steps: int = 20, seed: int = 0
) -> BranchSpectra:
    """Sample pairs (task joint), prompt i with seed `seed + i`, and measure both branches at each step."""
    height, width = pipe.config.default_height, pipe.config.default_width
    tokens = (height // pipe.size_multiple, width // pipe.size_multiple)
    schedule = sampling_schedule(num_inference_steps, tokens[0] * tokens[1]).tolist()
    levels = list(itertools.pairwise(schedule))
    clean: dict[str, list[FloatArray]] = {branch: [] for branch in BRANCHES}
    velocities: dict[str, list[FloatArray]] = {branch: [] for branch in BRANCHES}

    def on_step(step: int, latents: torch.Tensor, velocity: torch.Tensor) -> None:
        _, t_next = levels[step]
        # latents are at t_next, on the straight line that ends in the clean estimate at t = 0
        for kept, packed in ((clean, latents - t_next * velocity), (velocities, velocity)):
            for branch, half in zip(BRANCHES, packed.float().chunk(2), strict=True):
                kept[branch].append(radial_power(unpack_latents(half, 2 * tokens[0], 2 * tokens[1])))

    seeds = list(range(seed, seed + len(prompts)))
    pipe(prompt=list(prompts), seeds=seeds, num_inference_steps=num_inference_steps, on_step=on_step)
    return BranchSpectra(
        noise_level=np.array([t for t, _ in levels]),
        clean={branch: np.stack(rows) for branch, rows in clean.items()},
        velocity={branch: np.stack(rows) for branch, rows in velocities.items()},
        counts=radial_counts(2 * tokens[0], 2 * tokens[1]),
    )


def radial_power(latents: torch.Tensor) -> FloatArray:
    """Return the mean power per frequency by radius, (R,), over samples and channels of latents (B, C, h, w).

    The transform is orthonormal: power times count, summed over all radii, is h * w * variance.
    """
    height, width = latents.shape[-2:]
    power = torch.fft.fft2(latents.double(), norm="ortho").abs().square().mean(dim=(0, 1)).cpu().numpy()
    power[0, 0] = 0.0
    radius = _radius(height, width)
    return np.asarray(np.bincount(radius.ravel(), power.ravel()) / np.maximum(radial_counts(height, width), 1))


def radial_counts(height: int, width: int) -> FloatArray:
    """Return the number of frequencies of an (h, w) grid at each radius, (R,)."""
    return np.bincount(_radius(height, width).ravel()).astype(np.float64)


def _radius(height: int, width: int) -> NDArray[np.int64]:
    """Return the radius (h, w) of each frequency in cycles along the shorter side, rounded."""
    short = min(height, width)
    rows, columns = np.fft.fftfreq(height) * short, np.fft.fftfreq(width) * short
    return np.rint(np.hypot(rows[:, None], columns[None])).astype(np.int64)
