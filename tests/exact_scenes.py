"""Scenes with an analytic surface: exact depth, and the distance of any point to the surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jointdit.geometry.depth import Intrinsics, intrinsics_from_fov

FOV = 50.0  # degrees, vertical
WALL = 6.0  # depth of the wall behind sphere and box in metres
SPHERE, RADIUS = np.array([0.3, -0.2, 3.5]), 1.0
BOX_LOW, BOX_HIGH = np.array([0.5, 0.3, 3.0]), np.array([1.6, 1.2, 4.5])  # front, left side and top are visible
PLANE, OFFSET = np.array([0.3, -0.8, 0.52]) / np.linalg.norm([0.3, -0.8, 0.52]), 1.6


@dataclass(frozen=True)
class ExactScene:
    depth: np.ndarray  # (H, W) float32, metres
    rgb: np.ndarray  # (H, W, 3) uint8
    camera: Intrinsics
    size: float  # largest extent of the visible surface in metres
    distance: Callable[[np.ndarray], np.ndarray]  # points (N, 3) -> metres to the surface


def exact_scene(name: str, height: int = 96, width: int = 128) -> ExactScene:
    """Return the scene `sphere`, `plane` or `box`."""
    camera = intrinsics_from_fov(FOV, width, height)
    x = (np.arange(width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(height) + 0.5 - camera.cy) / camera.fy
    rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))], axis=-1)  # with z = 1 the ray parameter is depth
    z = HITS[name](rays)
    visible = rays * z[..., None]
    random = np.random.default_rng(0)
    return ExactScene(
        depth=z.astype(np.float32),
        rgb=random.integers(0, 256, (height, width, 3), dtype=np.uint8),
        camera=camera,
        size=float(np.ptp(visible.reshape(-1, 3), axis=0).max()),
        distance=DISTANCES[name],
    )


def _wall_behind(z: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(z), z, WALL)


def _sphere(rays: np.ndarray) -> np.ndarray:
    a, b = (rays**2).sum(axis=-1), rays @ SPHERE
    under = b**2 - a * (SPHERE @ SPHERE - RADIUS**2)
    return _wall_behind(np.where(under > 0, (b - np.sqrt(np.maximum(under, 0))) / a, np.inf))


def _box(rays: np.ndarray) -> np.ndarray:
    first, second = BOX_LOW / rays, BOX_HIGH / rays
    enters, leaves = np.minimum(first, second).max(axis=-1), np.maximum(first, second).min(axis=-1)
    return _wall_behind(np.where((enters <= leaves) & (enters > 0), enters, np.inf))


def _plane(rays: np.ndarray) -> np.ndarray:
    towards = rays @ PLANE
    z = OFFSET / towards
    return np.where((towards > 0) & (z < 20), z, 20.0)  # a wall at 20 m behind the plane


def _to_sphere(points: np.ndarray) -> np.ndarray:
    return np.minimum(np.abs(np.linalg.norm(points - SPHERE, axis=1) - RADIUS), np.abs(points[:, 2] - WALL))


def _to_box(points: np.ndarray) -> np.ndarray:
    outside = np.maximum(np.maximum(BOX_LOW - points, points - BOX_HIGH), 0)
    inside = np.minimum(points - BOX_LOW, BOX_HIGH - points).min(axis=1)
    distance = np.where(inside > 0, inside, np.linalg.norm(outside, axis=1))
    return np.minimum(distance, np.abs(points[:, 2] - WALL))


def _to_plane(points: np.ndarray) -> np.ndarray:
    return np.minimum(np.abs(points @ PLANE - OFFSET), np.abs(points[:, 2] - 20.0))


HITS = {"sphere": _sphere, "box": _box, "plane": _plane}
DISTANCES = {"sphere": _to_sphere, "box": _to_box, "plane": _to_plane}
