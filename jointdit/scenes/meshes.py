"""Unit meshes of the shapes, and their smooth normals.

A shape is inside [-1, 1]^3 with its axis along y, and stands on y = -1. Facets deviate from the true surface by about
1e-3 of the radius.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.open3d_import import import_open3d
from jointdit.scenes.vocabulary import FLAT_SHAPES

RING_RADIUS, RING_TUBE = 0.7, 0.3
CAPSULE_RADIUS = 0.55
BAR = 0.4  # half the height and depth of a bar; its half length is 1

UNIT_TOPS: dict[str, float] = {"cube": 0.7, "cylinder": 1.0}
"""Height of the top of shapes on which other objects can stand."""

FloatArray = NDArray[np.float32]


@cache
def unit_mesh(shape: str) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    """Return vertices (V, 3) and triangles (F, 3) of a shape."""
    create = import_open3d().geometry.TriangleMesh
    upright = (1, 1, -1)  # Open3D's axis is z: swap y and z and keep the handedness
    if shape == "cube":
        # With half extent 1 its corners would be at 1.41; 0.85 makes its size similar to the other shapes.
        mesh = create.create_box(1.7, 1.7, 1.7).translate((-0.85, -1.0, -0.85))
    elif shape == "bar":
        mesh = create.create_box(2.0, 2 * BAR, 2 * BAR).translate((-1.0, -1.0, -BAR))
    elif shape == "pyramid":
        mesh = create.create_cone(np.sqrt(2) * 0.85, 2.0, resolution=4, split=1).translate((0, 0, -1))
    elif shape == "ring":
        mesh = create.create_torus(RING_RADIUS, RING_TUBE, radial_resolution=80, tubular_resolution=40)
    elif shape == "cylinder":
        mesh = create.create_cylinder(0.8, 2.0, resolution=80, split=1)
    elif shape == "cone":
        mesh = create.create_cone(1.0, 2.0, resolution=80, split=1).translate((0, 0, -1))
    else:
        mesh = create.create_sphere(CAPSULE_RADIUS if shape == "capsule" else 1.0, resolution=40)
    vertices = np.asarray(mesh.vertices)
    if shape not in ("cube", "bar", "ring"):
        vertices = vertices[:, [0, 2, 1]] * upright
    if shape == "capsule":
        vertices = vertices + np.where(vertices[:, 1:2] >= 0, 1, -1) * np.array([0, 1 - CAPSULE_RADIUS, 0])
    return vertices, np.asarray(mesh.triangles).astype(np.uint32)


def smooth_normals(shape: str, points: FloatArray, facets: FloatArray) -> FloatArray:
    """Return normals (N, 3) of any length at points (N, 3) of the unit shape, exact ones on round sides."""
    if shape in FLAT_SHAPES:
        return facets
    x, y, _ = points.T
    if shape == "sphere":
        return points
    if shape == "capsule":
        reach = 1 - CAPSULE_RADIUS
        return points - np.stack([0 * x, np.clip(y, -reach, reach), 0 * y], axis=1)
    if shape == "ring":
        circle = RING_RADIUS / (np.hypot(x, y) + 1e-9)
        return points - np.stack([x * circle, y * circle, 0 * x], axis=1)
    side = np.abs(facets[:, 1:2]) < 0.9
    radial = points * np.array([1, 0, 1], np.float32)
    radial /= np.linalg.norm(radial, axis=1, keepdims=True) + 1e-9
    if shape == "cone":
        radial[:, 1] = 0.5  # the slope: radius 1 over height 2
    return np.where(side, radial, facets)
