"""Sheets of samples: a grid of images, each sample's images below each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jointdit.geometry.depth import grey_image

Rgb = NDArray[np.uint8]


def stretched(values: NDArray[np.float32]) -> Rgb:
    """Return a map (H, W) of any range as a grey image (H, W, 3); its 99th percentile is white."""
    top = float(np.percentile(values, 99)) or 1.0
    return grey_image(np.clip(values / top, 0, 1))


def save_sheet(path: Path, samples: Sequence[tuple[Rgb, ...]], columns: int = 6) -> Path:
    """Save samples side by side, the images (H, W, 3) of each below each other; return the path."""
    cells = [np.concatenate(sample, axis=0) for sample in samples]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
    return path
