"""What stands where: a scene drawn from a seed, before any ray is cast.

World frame: x right, y up, z forward (left-handed), metres; the floor is y = 0. The camera looks along +z, turned by
yaw and pitched down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jointdit.scenes.vocabulary import COLOURS, COLUMNS, FLOOR_TEXTURES, SHAPES, SIZES, WALL_TEXTURES


@dataclass(frozen=True)
class Surface:
    """A floor or a wall: a named colour under a texture that modulates its brightness."""

    colour: str
    texture: str
    period: float  # metres


@dataclass(frozen=True)
class SceneObject:
    """A primitive standing on the floor."""

    shape: str
    colour: str
    size: str
    column: str
    half_extent: float  # metres; radius of the sphere, half the height and the radius of the others
    x: float  # metres, of the centre
    z: float  # metres, of the centre
    turn: float  # radians about y


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


@dataclass(frozen=True)
class Layout:
    """Everything a renderer needs to know about one scene."""

    camera: Camera
    floor: Surface
    wall: Surface
    wall_z: float  # metres to the back wall, along z
    wall_turn: float  # radians about y
    left_wall_x: float | None  # metres; None: open on that side
    right_wall_x: float | None
    objects: tuple[SceneObject, ...]
    light: tuple[float, float, float]  # unit vector from the scene to the light


def sample_layout(seed: int) -> Layout:
    """Draw a scene. The same seed gives the same scene on every machine (NumPy's PCG64 stream)."""
    rng = np.random.default_rng([20250500482, seed])
    camera = Camera(
        height=rng.uniform(0.6, 2.4),
        yaw=rng.uniform(-0.25, 0.25),
        pitch=0.0,
        fov=np.deg2rad(rng.uniform(45.0, 65.0)),
    )
    # Look at a point on the axis one to four metres away, so that low cameras look level and high ones look down.
    camera = Camera(
        camera.height, camera.yaw, float(np.arctan2(camera.height - 0.45, rng.uniform(2.6, 4.2))), camera.fov
    )
    floor_colour, wall_colour = rng.choice(list(COLOURS), size=2, replace=False)
    floor = Surface(str(floor_colour), str(rng.choice(FLOOR_TEXTURES)), rng.uniform(0.5, 1.0))
    wall = Surface(str(wall_colour), str(rng.choice(WALL_TEXTURES)), rng.uniform(0.4, 0.8))
    wall_z = rng.uniform(3.6, 7.5)
    left = -rng.uniform(1.6, 3.2) if rng.random() < 0.3 else None
    right = rng.uniform(1.6, 3.2) if rng.random() < 0.3 else None
    objects = _place_objects(rng, camera, wall_z, {str(floor_colour), str(wall_colour)})
    azimuth, elevation = rng.uniform(-1.1, 1.1) + np.pi, rng.uniform(0.7, 1.2)
    light = (
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
        float(np.cos(azimuth) * np.cos(elevation)),
    )
    return Layout(camera, floor, wall, wall_z, rng.uniform(-0.2, 0.2), left, right, objects, light)


def _place_objects(
    rng: np.random.Generator, camera: Camera, wall_z: float, taken_colours: set[str]
) -> tuple[SceneObject, ...]:
    count = int(rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2]))
    columns = sorted(rng.choice(list(COLUMNS), size=count, replace=False), key=list(COLUMNS).index)
    free = [name for name in COLOURS if name not in taken_colours]
    colours = rng.choice(free, size=count, replace=False)
    objects = []
    for column, colour in zip(columns, colours, strict=True):
        size = str(rng.choice(list(SIZES)))
        half_extent = rng.uniform(*SIZES[size])
        distance = rng.uniform(1.7, min(3.3, wall_z - 1.2))
        across = (rng.uniform(*COLUMNS[str(column)]) - 0.5) * 2.0 * np.tan(camera.fov / 2) * distance
        x = across * np.cos(camera.yaw) + distance * np.sin(camera.yaw)
        z = distance * np.cos(camera.yaw) - across * np.sin(camera.yaw)
        shape = str(rng.choice(SHAPES))
        objects.append(
            SceneObject(
                shape, str(colour), size, str(column), half_extent, float(x), float(z), rng.uniform(0, np.pi / 2)
            )
        )
    return tuple(objects)
