"""The description of a scene: camera, surfaces, objects, light and mentions.

World frame: x right, y up, z forward (left-handed), in metres. The floor is y = 0. The camera looks along +z, rotated
by yaw and pitched down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Surface:
    """A floor or a wall: a named colour with a texture that modulates its brightness."""

    colour: str
    texture: str
    period: float  # metres


@dataclass(frozen=True)
class SceneObject:
    """A primitive that stands on the floor or on another object."""

    shape: str
    colour: str
    size: str
    column: str
    half_extent: float  # metres; radius of the sphere, half the height and radius of other shapes
    x: float  # metres, of the centre
    z: float  # metres, of the centre
    turn: float  # radians about y
    base: float = 0.0  # metres, height of its lower side
    texture: str = "plain"
    material: str = "matte"

    @property
    def y(self) -> float:
        """Height of the centre in metres."""
        return self.base + self.half_extent


@dataclass(frozen=True)
class Mention:
    """Objects in one phrase of a caption; they differ only in their place.

    A relation refers to the next mention, which follows it in the caption.
    """

    objects: tuple[int, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Positive `yaw` is to the right, positive `pitch` down; `fov` is vertical. All in radians."""

    height: float  # metres above the floor
    yaw: float
    pitch: float
    fov: float

    def rotation(self) -> NDArray[np.float64]:
        """Return the (3, 3) matrix whose columns are the camera's right, down and forward axes in the world."""
        cy, sy, cp, sp = np.cos(self.yaw), np.sin(self.yaw), np.cos(self.pitch), np.sin(self.pitch)
        forward = np.array([sy * cp, -sp, cy * cp])
        right = np.array([cy, 0.0, -sy])
        return np.stack([right, np.cross(right, forward), forward], axis=1)

    def project(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Project a point of the world to (u, v, depth): shares of a square image's width and height, and metres."""
        right, down, depth = np.array([x, y - self.height, z]) @ self.rotation()
        scale = 2 * np.tan(self.fov / 2) * max(depth, 1e-6)
        return 0.5 + right / scale, 0.5 + down / scale, float(depth)


@dataclass(frozen=True)
class Layout:
    """The description of one scene for the renderer.

    Outdoors the floor is open ground and the wall is a painted sky, upright at a finite distance, so that depth is
    finite everywhere.
    """

    camera: Camera
    floor: Surface
    wall: Surface
    wall_z: float  # metres to the back wall, along z
    wall_turn: float  # radians about y
    left_wall_x: float | None  # metres; None: open on that side
    right_wall_x: float | None
    objects: tuple[SceneObject, ...]
    light: tuple[float, float, float]  # unit vector from the scene to the light
    mentions: tuple[Mention, ...]
    outdoors: bool = False
    light_kind: str = "hard"
