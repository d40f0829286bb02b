"""What a scene is made of, before any ray is cast.

World frame: x right, y up, z forward (left-handed), metres; the floor is y = 0. The camera looks along +z, turned by
yaw and pitched down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Surface:
    """A floor or a wall: a named colour under a texture that modulates its brightness."""

    colour: str
    texture: str
    period: float  # metres


@dataclass(frozen=True)
class SceneObject:
    """A primitive standing on the floor, or on another."""

    shape: str
    colour: str
    size: str
    column: str
    half_extent: float  # metres; radius of the sphere, half the height and the radius of the others
    x: float  # metres, of the centre
    z: float  # metres, of the centre
    turn: float  # radians about y
    base: float = 0.0  # metres: the height it stands at
    texture: str = "plain"
    material: str = "matte"

    @property
    def y(self) -> float:
        """Height of the centre in metres."""
        return self.base + self.half_extent


@dataclass(frozen=True)
class Mention:
    """Objects that a caption tells in one phrase, alike in everything but their place.

    With a relation, what follows it in the caption is the mention after this one.
    """

    objects: tuple[int, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. `yaw` turns right, `pitch` looks down, both in radians; `fov` is vertical, in radians."""

    height: float  # metres above the floor
    yaw: float
    pitch: float
    fov: float

    def rotation(self) -> NDArray[np.float64]:
        """(3, 3) matrix whose columns are the camera's right, down and forward axes in the world."""
        cy, sy, cp, sp = np.cos(self.yaw), np.sin(self.yaw), np.cos(self.pitch), np.sin(self.pitch)
        forward = np.array([sy * cp, -sp, cy * cp])
        right = np.array([cy, 0.0, -sy])
        return np.stack([right, np.cross(right, forward), forward], axis=1)

    def project(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """A point of the world -> (u, v, depth): shares of a square image's width and height, and metres."""
        right, down, depth = np.array([x, y - self.height, z]) @ self.rotation()
        scale = 2 * np.tan(self.fov / 2) * max(depth, 1e-6)
        return 0.5 + right / scale, 0.5 + down / scale, float(depth)


@dataclass(frozen=True)
class Layout:
    """Everything a renderer needs to know about one scene.

    Outdoors the floor is open ground, and the wall a painted sky, upright at a finite distance, so that depth is finite
    everywhere.
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
