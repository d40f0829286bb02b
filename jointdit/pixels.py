"""Input images and disparity maps: the accepted forms, and conversion to and from the VAE's range.

Depth enters the VAE as relative disparity, scaled to [-1, 1] and repeated to three channels. It leaves the VAE as the
mean of the channels in float32: bfloat16 or 8 bits would lose the precision of far depth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jointdit.errors import InputError
from jointdit.loading.adapter_flags import DepthTransform

ROUNDING = 1e-3  # tolerance outside [0, 1] of a resampled disparity
NEAREST_16BIT = 65535
CHANNELS = (3, 4)  # RGB, or RGB and opacity


def read_images(image: Any) -> NDArray[np.uint8]:
    """Return images of one size as (K, H, W, 3) uint8 from every form that users have.

    The forms are PIL images, uint8 arrays, and floats in [0, 1] as diffusers gives them: arrays (H, W, 3), tensors or
    arrays (3, H, W), batches of them, and lists. A fourth channel is opacity, and is composited on white. EXIF rotation
    is not applied. Raises InputError.
    """
    arrays = [_image_array(item) for item in _items(image, 3)]
    return np.stack(_of_one_size("image", arrays, 3))


def read_disparities(disparity: Any) -> NDArray[np.float32]:
    """Return disparities of one size as (K, H, W) float32 from arrays, tensors, 16-bit PIL images, and lists of them.

    NaN is accepted, because it affects only its own sample. Raises InputError, also for values outside [0, 1].
    """
    arrays = [_disparity_array(item) for item in _items(disparity, 2)]
    maps = np.stack(_of_one_size("disparity", arrays, 2)).astype(np.float32)
    if np.any((maps < -ROUNDING) | (maps > 1 + ROUNDING)):
        raise InputError(
            f"disparity ranges from {np.nanmin(maps):g} to {np.nanmax(maps):g}: give [0, 1], 1 is nearest."
        )
    return maps


def _items(value: Any, ndim: int) -> list[Any]:
    """Return the single images or maps of a list, a batch or one of them. Batches of maps may have one channel."""
    if isinstance(value, list | tuple):
        return [single for item in value for single in _items(item, ndim)]
    if isinstance(value, Image.Image):
        return [value]
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if ndim == 2 and array.ndim == 4 and 1 in (array.shape[1], array.shape[3]):
        array = array.squeeze(1 if array.shape[1] == 1 else 3)
    return list(array) if array.ndim == ndim + 1 else [array]


def _image_array(item: Any) -> NDArray[Any]:
    if isinstance(item, Image.Image):
        item = np.asarray(item.convert("RGBA" if item.has_transparency_data else "RGB"))
    if item.ndim == 3 and item.shape[2] not in CHANNELS and item.shape[0] in CHANNELS:
        item = item.transpose(1, 2, 0)
    is_unit = item.dtype.kind == "f" and item.size > 0 and bool(np.all((item >= 0) & (item <= 1)))
    if item.ndim == 3 and (item.shape[2] not in CHANNELS or not (item.dtype == np.uint8 or is_unit)):
        raise InputError(
            f"image is {item.dtype} of shape {item.shape}: give a PIL image, or uint8 or floats in [0, 1] of shape "
            "(H, W, 3)."
        )
    if is_unit:
        item = np.rint(item * 255).astype(np.uint8)
    return _on_white(item) if item.ndim == 3 and item.shape[2] == 4 else item


def _on_white(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    layers = Image.new("RGBA", (image.shape[1], image.shape[0]), "white"), Image.fromarray(image)
    return np.asarray(Image.alpha_composite(*layers).convert("RGB"))


def _disparity_array(item: Any) -> NDArray[Any]:
    if not isinstance(item, Image.Image):
        return np.asarray(item)
    if item.mode == "F":
        return np.asarray(item)
    if not item.mode.startswith("I"):
        raise InputError(f"disparity is a PIL image of mode {item.mode}: give 16 bits (I;16), 65535 is nearest.")
    return np.asarray(item).astype(np.float64) / NEAREST_16BIT


def _of_one_size(name: str, arrays: list[NDArray[Any]], ndim: int) -> list[NDArray[Any]]:
    if not arrays:
        raise InputError(f"{name} is empty: give at least one.")
    if any(array.ndim != ndim or array.shape != arrays[0].shape for array in arrays):
        shapes = " and ".join(sorted({str(array.shape) for array in arrays}))
        raise InputError(f"{name} has shape {shapes}: give arrays of one size with {ndim} dimensions.")
    return arrays


def image_to_vae(images: NDArray[np.uint8]) -> torch.Tensor:
    """Convert (B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def disparity_to_vae(disparities: NDArray[np.float32], depth_transform: DepthTransform = "none") -> torch.Tensor:
    """Convert (B, H, W) in [0, 1] to (B, 3, H, W) in [-1, 1], three equal channels; inverse: of 1 - disparity."""
    pixels = torch.from_numpy(disparities) * 2 - 1
    return (-pixels if depth_transform == "inverse" else pixels)[:, None].repeat(1, 3, 1, 1)


def vae_to_image(decoded: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Convert (B, 3, H, W) to (B, H, W, 3) uint8, and return which samples (B,) are finite."""
    finite = decoded.isfinite().flatten(1).all(dim=1)
    pixels = (decoded.nan_to_num() + 1).clamp(0, 2) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), finite.numpy()


def vae_to_disparity(decoded: torch.Tensor, depth_transform: DepthTransform = "none") -> NDArray[np.float32]:
    """Convert (B, 3, H, W) to (B, H, W): the channel mean, scaled to [0, 1] per image; a constant map becomes 0.

    inverse: the channels hold 1 - disparity.
    """
    maps = decoded.mean(dim=1)
    if depth_transform == "inverse":
        maps = -maps
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / torch.where(high > low, high - low, 1)).numpy()
