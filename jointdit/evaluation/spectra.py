"""What each branch works on, and when: radial power spectra of the latents over the sampling steps.

The paper finds that the depth branch carries structure and the RGB branch texture. Structure is low frequency, texture
is high: so at each step the estimate of the clean latents, x_t - t v, and the velocity v are measured in each branch.
Velocities hold the noise (v = noise - clean), whose spectrum is flat; the clean estimates are the sharper look.
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
    """Of one task: noise level before each step (S,), and spectra (S, R) of the clean estimate and the velocity.

    Row s holds mean power a frequency at radius 0 to R - 1 cycles an image, constant part left out. `counts` (R,) is
    how many frequencies have that radius.
    """

    noise_level: FloatArray
    clean: dict[str, FloatArray]
    velocity: dict[str, FloatArray]
    counts: FloatArray

    def high_share(self, branch: str, of: str = "clean") -> FloatArray:
        """(S,) share of the energy above half the highest radius, of "clean" or "velocity"."""
        energy = getattr(self, of)[branch] * self.counts
        half = energy.shape[1] // 2
        return np.asarray(energy[:, half + 1 :].sum(axis=1) / energy[:, 1:].sum(axis=1))

    def settled_at(self, branch: str, high: bool, within: float = 0.1) -> int:
        """Steps until the energy of the clean estimate below (or above) half the highest radius stays near its end.

        Near: within a share `within` of the last step's.
        """
        energy = self.clean[branch] * self.counts
        half = energy.shape[1] // 2
        band = energy[:, half + 1 :].sum(axis=1) if high else energy[:, 1 : half + 1].sum(axis=1)
        far = np.flatnonzero(np.abs(band / band[-1] - 1) > within)
        return int(far[-1]) + 2 if len(far) else 1


def record_spectra(
    pipe: JointDiTPipeline, prompts: Sequence[str], num_inference_steps: int = 20, seed: int = 0
) -> BranchSpectra:
    """Sample pairs (task joint), prompt i with seed `seed + i`, and measure both branches at every step."""
    height, width = pipe.config.default_height, pipe.config.default_width
    tokens = (height // pipe.size_multiple, width // pipe.size_multiple)
    schedule = sampling_schedule(num_inference_steps, tokens[0] * tokens[1]).tolist()
    levels = list(itertools.pairwise(schedule))
    clean: dict[str, list[FloatArray]] = {branch: [] for branch in BRANCHES}
    velocities: dict[str, list[FloatArray]] = {branch: [] for branch in BRANCHES}

    def on_step(step: int, latents: torch.Tensor, velocity: torch.Tensor) -> None:
        _, t_next = levels[step]
        # latents are at t_next already, on the straight line whose end at t = 0 is the clean estimate
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
    """Mean power a frequency by radius, (R,), over samples and channels of latents (B, C, h, w).

    Orthonormal transform: power times count, summed over all radii, is the energy h * w * variance.
    """
    height, width = latents.shape[-2:]
    power = torch.fft.fft2(latents.double(), norm="ortho").abs().square().mean(dim=(0, 1)).cpu().numpy()
    power[0, 0] = 0.0
    radius = _radius(height, width)
    return np.asarray(np.bincount(radius.ravel(), power.ravel()) / np.maximum(radial_counts(height, width), 1))


def radial_counts(height: int, width: int) -> FloatArray:
    """How many frequencies of an (h, w) grid lie at each radius, (R,)."""
    return np.bincount(_radius(height, width).ravel()).astype(np.float64)


def _radius(height: int, width: int) -> NDArray[np.int64]:
    """(h, w) radius of each frequency in cycles along the shorter side, rounded."""
    short = min(height, width)
    rows, columns = np.fft.fftfreq(height) * short, np.fft.fftfreq(width) * short
    return np.rint(np.hypot(rows[:, None], columns[None])).astype(np.int64)
