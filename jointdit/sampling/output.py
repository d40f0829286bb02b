"""The output of JointDiTPipeline, and its forms: arrays, PIL images, tensors or latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image

from jointdit.pixels import NEAREST_16BIT


@dataclass
class JointDiTOutput(BaseOutput):
    """Output of a call, one entry per sample, in the form of its `output_type`.

        np       rgb uint8 (B, H, W, 3); disparity and uncertainty float32 (B, H, W)
        pil      lists of RGB images and of 16-bit greyscale maps (I;16), 65535 nearest; uncertainty as np
        pt       rgb (B, 3, H, W) in [0, 1]; disparity and uncertainty (B, 1, H, W); float32 on the CPU
        latent   packed latents of rgb and disparity (B, N, C), without a conversion to pixels

    `disparity` is relative: the decoded map is scaled so that the nearest pixel of each image is 1 and the farthest 0.
    The input image or map is returned unchanged. A sample with values that are not finite has `finite` False, NaN
    disparity (0 in pil) and black pixels; the other samples are not affected. `uncertainty` is the spread of an
    ensemble, None unless asked for.
    """

    rgb: Any
    disparity: Any
    finite: NDArray[np.bool_]  # (B,)
    uncertainty: Any = None

    @property
    def images(self) -> Any:
        """The images, by the name that diffusers' pipelines give them."""
        return self.rgb


def as_pil(
    rgb: Sequence[NDArray[np.uint8]], disparity: Sequence[NDArray[np.float32]]
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return images (H, W, 3) and maps (H, W) in [0, 1] as PIL images, maps with 16 bits."""
    levels = [np.rint(np.nan_to_num(each).astype(np.float64) * NEAREST_16BIT).astype(np.uint16) for each in disparity]
    return [Image.fromarray(image) for image in rgb], [Image.fromarray(each) for each in levels]


def image_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """Return (B, H, W, 3) uint8 as (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


def map_tensor(maps: NDArray[np.float32]) -> torch.Tensor:
    """Return (B, H, W) as (B, 1, H, W) float32."""
    return torch.from_numpy(np.ascontiguousarray(maps))[:, None]
