"""Input images and disparity maps: checks, and conversion to and from the VAE's range.

Depth enters the VAE as relative disparity, scaled to [-1, 1] and repeated to three channels. It leaves the VAE as the
mean of the channels in float32: bfloat16 or 8 bits would lose the precision of far depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.errors import InputError

ROUNDING = 1e-3  # tolerance outside [0, 1] of a resampled disparity


def one_each(name: str, values: list[Any], seeds: Sequence[int]) -> list[Any]:
    """Return one value per seed; a single value is repeated. Raises InputError if the numbers differ."""
    if not seeds:
        raise InputError("seeds is empty: give one seed a sample.")
    if len(values) == 1:
        return values * len(seeds)
    if len(values) != len(seeds):
        raise InputError(f"{name} has {len(values)} entries but there are {len(seeds)} seeds: give one, or one a seed.")
    return values


def check_images(image: object, seeds: Sequence[int], task: str) -> NDArray[np.uint8] | None:
    """Return images of one size as (B, H, W, 3) uint8 for task depth, None for other tasks. Raises InputError."""
    arrays = _arrays("image", image, seeds, ndim=3, task=task, needed=task == "depth")
    if arrays is None:
        return None
    if arrays[0].shape[2] != 3 or any(array.dtype != np.uint8 for array in arrays):
        raise InputError(f"image is {arrays[0].dtype} of shape {arrays[0].shape}: give uint8 of shape (H, W, 3).")
    return np.stack(arrays)


def check_disparities(disparity: object, seeds: Sequence[int], task: str) -> NDArray[np.float32] | None:
    """Return disparities of one size as (B, H, W) float32 for task depth-to-image, None for other tasks.

    NaN is accepted, because it affects only its own sample. Raises InputError, also for values outside [0, 1].
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
    """Return one array per sample, all of one shape with ndim dimensions; None if the task takes none."""
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
    """Convert (B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def disparity_to_vae(disparities: NDArray[np.float32]) -> torch.Tensor:
    """Convert (B, H, W) in [0, 1] to (B, 3, H, W) in [-1, 1], three equal channels."""
    return (torch.from_numpy(disparities) * 2 - 1)[:, None].repeat(1, 3, 1, 1)


def vae_to_image(decoded: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Convert (B, 3, H, W) to (B, H, W, 3) uint8, and return which samples (B,) are finite."""
    finite = decoded.isfinite().flatten(1).all(dim=1)
    pixels = (decoded.nan_to_num() + 1).clamp(0, 2) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), finite.numpy()


def vae_to_disparity(decoded: torch.Tensor) -> NDArray[np.float32]:
    """Convert (B, 3, H, W) to (B, H, W): the channel mean, scaled to [0, 1] per image; a constant map becomes 0."""
    maps = decoded.mean(dim=1)
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / torch.where(high > low, high - low, 1)).numpy()
