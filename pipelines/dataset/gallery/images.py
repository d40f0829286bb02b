"""A row's image and depth at the gallery's size, as text that a script can carry.

Depth goes to the browser as numbers and not as an image: it is coloured there, read off under the pointer and turned
into points, which 8 bits are too few for. 12 bits, each the difference to what its left, upper and upper left
neighbours predict, deflated: 8.5 kB for a rendered scene of 128 x 128 pixels, where 16-bit PNG takes 23.6 kB.
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
NEAREST = 4095  # 1 is the farthest, 0 a hole


def thumbnail(data: bytes | None) -> str | None:
    """An image as base64 of a WebP file; None where there is none or it is damaged, which `validate` tells."""
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
    """{width, height, data} of a 16-bit depth image; None where there is none or it is damaged.

    Values are picked, not averaged: the mean of both sides of an edge is a surface that is not there.
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
    """Values (H, W) in [0, 4095], deflated; depth.js unpacks them."""
    padded = np.pad(values, ((1, 0), (1, 0)))
    difference = padded[1:, 1:] - padded[1:, :-1] - padded[:-1, 1:] + padded[:-1, :-1]
    unsigned = ((difference << 1) ^ (difference >> 31)).astype("<u2")  # small numbers of either sign are small
    return zlib.compress(unsigned.ravel().view(np.uint8).reshape(-1, 2).T.tobytes(), 6)  # low bytes, then high ones


def _picked(disparity: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = disparity.shape
    scale = min(1.0, DEPTH_SIDE / max(height, width))
    rows, columns = (_centres(side, max(1, round(side * scale))) for side in (height, width))
    return disparity[np.ix_(rows, columns)]


def _centres(found: int, wanted: int) -> NDArray[np.int64]:
    """The pixel under the centre of each of `wanted` equal parts of `found` pixels."""
    return ((np.arange(wanted) + 0.5) * found / wanted).astype(np.int64)
