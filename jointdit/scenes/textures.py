"""Textures as patterns of brightness; they do not change the name of a surface's colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DARK = 0.82  # brightness of the dark parts

FloatArray = NDArray[np.float32]


def surface_texture(texture: str, period: float, position: FloatArray) -> FloatArray:
    """Return brightness factors (N,) at positions (N, 2) in metres: (x, z) on a floor, (along, up) on a wall or sky."""
    a, b = (position / np.float32(period)).T
    if texture == "checkered":
        dark = (np.floor(a) + np.floor(b)) % 2 == 1
    elif texture == "striped":
        dark = np.floor(a) % 2 == 1
    elif texture == "brick":
        row = np.floor(b * 2)
        dark = (np.mod(b * 2, 1) < 0.14) | (np.mod(a + 0.5 * np.mod(row, 2), 1) < 0.07)
    elif texture == "tiled":
        dark = (np.mod(a, 1) < 0.1) | (np.mod(b, 1) < 0.1)
    elif texture == "panelled":
        dark = np.mod(a, 1) < 0.12
    elif texture == "dotted":
        dark = np.hypot(np.mod(a * 1.5, 1) - 0.5, np.mod(b * 1.5, 1) - 0.5) < 0.28
    elif texture == "wooden":
        plank = np.floor(a * 3)
        joint = np.mod(b * 0.7 + 0.37 * plank, 1) < 0.04
        tone = 1 - (1 - DARK) * 0.6 * np.mod(plank * 0.618, 1)  # planks of several tones
        return np.where(joint | (np.mod(a * 3, 1) < 0.1), DARK, tone).astype(np.float32)
    elif texture == "cloudy":
        u, v = 0.35 * a, 0.9 * b  # clouds are wide and low
        waves = np.sin(u + 0.7 * np.sin(v)) + np.sin(1.7 * v + np.sin(0.6 * u + 1)) + np.sin(0.53 * u - 0.4 * v)
        return (1 - (1 - DARK) * (0.5 + waves / 6)).astype(np.float32)
    else:
        return np.ones(len(position), np.float32)
    return np.where(dark, DARK, 1.0).astype(np.float32)


def object_texture(texture: str, points: FloatArray) -> FloatArray:
    """Return brightness factors (N,) at points (N, 3) of a unit shape."""
    x, y, z = points.T
    if texture == "striped":
        dark = np.floor(y * 2.5) % 2 == 0
    elif texture == "checkered":
        dark = (np.floor(x * 2.02) + np.floor(y * 2.02) + np.floor(z * 2.02)) % 2 == 0
    elif texture == "spotted":
        dark = np.linalg.norm(np.mod(points * 1.5 + 0.25, 1) - 0.5, axis=1) < 0.36
    else:
        return np.ones(len(points), np.float32)
    return np.where(dark, DARK, 1.0).astype(np.float32)
