"""The words a scene is described with, and the colours they stand for."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (240, 220, 40),
    "green": (50, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (45, 75, 210),
    "purple": (140, 50, 180),
    "white": (238, 238, 238),
    "gray": (104, 104, 104),
}
"""Name -> sRGB 0..255 of the fully lit surface; shading by a factor of 0.5 to 1 does not turn one into another."""

SHAPES: tuple[str, ...] = ("sphere", "cube", "cylinder", "cone")

SIZES: dict[str, tuple[float, float]] = {"small": (0.24, 0.31), "large": (0.42, 0.56)}
"""Name -> range of the half extent in metres."""

COLUMNS: dict[str, tuple[float, float]] = {"left": (0.18, 0.34), "middle": (0.43, 0.57), "right": (0.66, 0.82)}
"""Where an object stands -> range of its centre's horizontal position as a share of the picture's width."""

FLOOR_TEXTURES: tuple[str, ...] = ("plain", "checkered", "striped")
WALL_TEXTURES: tuple[str, ...] = ("plain", "striped", "brick")
