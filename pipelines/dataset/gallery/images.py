"""Encode a row's image and depth at the gallery's size as text inside a script.

Depth is sent to the browser as numbers and not as an image, because the page colours it, shows the value under the
pointer and turns it into points; 8 bits are too few for that. Each value has 12 bits. It is stored as the difference to
a prediction from its left, upper and upper left neighbours and deflated: 8.5 kB for a rendered scene of 128 x 128
pixels, where 16-bit PNG takes 23.6 kB.
"""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jointdit.errors import RowError
from jointdit.geometry.depth import decode_depth_png
from pipelines.stages.readers.images import decode_image

IMAGE_SIDE = 256  # pixels, the longer side
DEPTH_SIDE = 128  # pixels, the longer side: at most 16,384 points
NEAREST = 4095  # 1 is farthest, 0 is a hole


def thumbnail(data: bytes | None) -> str | None:
    """Return an image as base64 of a WebP file, or None where it is missing or damaged (`validate` reports that)."""
    if data is None:
        return None
    try:
        image = Image.fromarray(decode_image(data)[0])
    except RowError:
        return None
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=82, method=2)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def depth_grid(data: bytes | None, has_holes: bool = False) -> dict[str, Any] | None:
    """Return {width, height, data} of a 16-bit depth image, or None where it is missing or damaged.

    Values are picked and not averaged: the mean of both sides of an edge is a surface that does not exist.
    """
    if data is None:
        return None
    try:
        disparity = decode_depth_png(data)
    except RowError:
        return None
    values = 1 + np.rint(_picked(disparity) * (NEAREST - 1)).astype(np.int32)
    if has_holes:
        values[_picked(disparity) == 0] = 0
    height, width = values.shape
    return {"width": width, "height": height, "data": base64.b64encode(pack(values)).decode("ascii")}


def pack(values: NDArray[np.int32]) -> bytes:
    """Deflate values (H, W) in [0, 4095]. depth.js inflates them."""
    padded = np.pad(values, ((1, 0), (1, 0)))
    difference = padded[1:, 1:] - padded[1:, :-1] - padded[:-1, 1:] + padded[:-1, :-1]
    unsigned = ((difference << 1) ^ (difference >> 31)).astype(
        "<u2"
    )  # zigzag: small differences of either sign are small
    return zlib.compress(unsigned.ravel().view(np.uint8).reshape(-1, 2).T.tobytes(), 6)  # low bytes, then high bytes


def _picked(disparity: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = disparity.shape
    scale = min(1.0, DEPTH_SIDE / max(height, width))
    rows, columns = (_centres(side, max(1, round(side * scale))) for side in (height, width))
    return disparity[np.ix_(rows, columns)]


def _centres(pixels: int, parts: int) -> NDArray[np.int64]:
    """Return the pixel under the centre of each of `parts` equal parts of a side."""
    return ((np.arange(parts) + 0.5) * pixels / parts).astype(np.int64)
