"""Images and disparity maps as a caller gives them, checked, and their way into and out of the VAE.

Depth enters the VAE as relative disparity spread to [-1, 1] and repeated to three channels, and leaves it as the
channel mean in float32: bfloat16 and 8 bits ruin far depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.errors import InputError

ROUNDING = 1e-3  # how far outside [0, 1] a resampled disparity may lie


def one_each(name: str, values: list[Any], seeds: Sequence[int]) -> list[Any]:
    """Values for len(seeds) samples: one for all is repeated. Raises InputError where the numbers differ."""
    if not seeds:
        raise InputError("seeds is empty: give one seed a sample.")
    if len(values) == 1:
        return values * len(seeds)
    if len(values) != len(seeds):
        raise InputError(f"{name} has {len(values)} entries but there are {len(seeds)} seeds: give one, or one a seed.")
    return values


def check_images(image: object, seeds: Sequence[int], task: str) -> NDArray[np.uint8] | None:
    """Images of one size as (B, H, W, 3) uint8 for the task depth, else None. Raises InputError for anything else."""
    arrays = _arrays("image", image, seeds, ndim=3, task=task, needed=task == "depth")
    if arrays is None:
        return None
    if arrays[0].shape[2] != 3 or any(array.dtype != np.uint8 for array in arrays):
        raise InputError(f"image is {arrays[0].dtype} of shape {arrays[0].shape}: give uint8 of shape (H, W, 3).")
    return np.stack(arrays)


def check_disparities(disparity: object, seeds: Sequence[int], task: str) -> NDArray[np.float32] | None:
    """Disparities of one size as (B, H, W) float32 for the task depth-to-image, else None.

    NaN passes: it spoils its own sample only. Raises InputError for values outside [0, 1] and anything else.
    """
    arrays = _arrays("disparity", disparity, seeds, ndim=2, task=task, needed=task == "depth-to-image")
    if arrays is None:
        return None
    maps = np.stack(arrays).astype(np.float32)
    if np.any((maps < -ROUNDING) | (maps > 1 + ROUNDING)):
        raise InputError(
            f"disparity ranges from {np.nanmin(maps):g} to {np.nanmax(maps):g}: give [0, 1], 1 is nearest."
        )
    return maps


def _arrays(
    name: str, value: Any, seeds: Sequence[int], ndim: int, task: str, needed: bool
) -> list[NDArray[Any]] | None:
    """One array a sample, of one shape with ndim dimensions; None where the task takes none and none is given."""
    if (value is not None) != needed:
        raise InputError(f"task {task!r} {'needs' if needed else 'does not take'} {name}, {name} is {_kind(value)}.")
    if value is None:
        return None
    items = value if isinstance(value, list | tuple) or np.ndim(value) == ndim + 1 else [value]
    arrays = one_each(name, [np.asarray(item) for item in items], seeds)
    if any(array.ndim != ndim or array.shape != arrays[0].shape for array in arrays):
        shapes = " and ".join(sorted({str(array.shape) for array in arrays}))
        raise InputError(f"{name} has shape {shapes}: give arrays of one size with {ndim} dimensions.")
    return arrays


def _kind(value: object) -> str:
    return "missing" if value is None else "given"


def image_to_vae(images: NDArray[np.uint8]) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def disparity_to_vae(disparities: NDArray[np.float32]) -> torch.Tensor:
    """(B, H, W) in [0, 1] -> (B, 3, H, W) in [-1, 1], three equal channels."""
    return (torch.from_numpy(disparities) * 2 - 1)[:, None].repeat(1, 3, 1, 1)


def vae_to_image(decoded: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(B, 3, H, W) -> (B, H, W, 3) uint8, and which samples are finite."""
    finite = decoded.isfinite().flatten(1).all(dim=1)
    pixels = (decoded.nan_to_num() + 1).clamp(0, 2) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), finite.numpy()


def vae_to_disparity(decoded: torch.Tensor) -> NDArray[np.float32]:
    """(B, 3, H, W) -> (B, H, W): channel mean, then min-max an image to [0, 1]; a map without any relief becomes 0."""
    maps = decoded.mean(dim=1)
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / torch.where(high > low, high - low, 1)).numpy()
