"""The words of captions, and their values in a scene."""

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
"""Name -> sRGB 0..255 of the fully lit surface. Shading by a factor of 0.5 to 1 does not change the name."""

SHAPES: tuple[str, ...] = ("sphere", "cube", "cylinder", "cone", "pyramid", "ring", "capsule", "bar")
"""Primitives; the plural adds an s."""

FLAT_SHAPES: frozenset[str] = frozenset({"cube", "pyramid", "bar"})
"""Shapes whose faces are all plane."""

SIZES: dict[str, tuple[float, float]] = {"small": (0.24, 0.31), "medium": (0.34, 0.40), "large": (0.44, 0.58)}
"""Name -> range of the half extent in metres."""

COLUMNS: dict[str, tuple[float, float]] = {"left": (0.18, 0.34), "middle": (0.43, 0.57), "right": (0.66, 0.82)}
"""Column of an object -> range of its centre's horizontal position as a share of the image's width."""

RELATIONS: tuple[str, ...] = ("on top of", "behind", "in front of", "to the left of", "to the right of", "next to")
"""Position of an object relative to the next mention."""

COUNTS: dict[int, str] = {2: "two", 3: "three"}

MATERIALS: tuple[str, ...] = ("matte", "shiny")  # matte is not mentioned
OBJECT_TEXTURES: tuple[str, ...] = ("plain", "striped", "spotted", "checkered")  # plain is not mentioned
FLOOR_TEXTURES: tuple[str, ...] = ("plain", "checkered", "striped", "tiled", "wooden", "dotted")
WALL_TEXTURES: tuple[str, ...] = ("plain", "striped", "brick", "panelled", "checkered")
SKY_TEXTURES: tuple[str, ...] = ("plain", "cloudy")
LIGHTS: tuple[str, ...] = ("hard", "soft")  # shadows are brighter in soft light
