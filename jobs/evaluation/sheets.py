"""Sheets of samples: images in a grid, each with what belongs to it below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jointdit.geometry.depth import grey_image

Rgb = NDArray[np.uint8]


def stretched(values: NDArray[np.float32]) -> Rgb:
    """A map (H, W) of any range as an image (H, W, 3), its 99th percentile white."""
    top = float(np.percentile(values, 99)) or 1.0
    return grey_image(np.clip(values / top, 0, 1))


def save_sheet(path: Path, samples: Sequence[tuple[Rgb, ...]], columns: int = 6) -> Path:
    """Samples side by side, the images (H, W, 3) of each one below the other; returns the path."""
    cells = [np.concatenate(sample, axis=0) for sample in samples]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
    return path
