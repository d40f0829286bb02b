"""Flatness of lifted planes, and distance of lifted points to the exact surface.

Estimated disparity is aligned to the exact depth by least squares and unprojected with the scene's intrinsics. Floor,
walls and the faces of cubes should be planes, and the points should be on the surface, which is the exact depth map as
triangles. JointDiT is reported to bend walls; `bend` measures that part of the error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jointdit.evaluation.alignment import Alignment, FloatArray
from jointdit.evaluation.metrics import SCENE_RANGE, clipped_depth
from jointdit.geometry.depth import depth_edges, unproject
from jointdit.geometry.open3d_import import import_open3d
from jointdit.scenes import FLAT_SHAPES, Scene

ON_PLANE = 1e-3  # share of a point's depth that it may be away from its plane
SMALLEST_PLANE = 0.005  # share of the image
CANDIDATES = 64  # candidate planes per surface
PLANES_A_SURFACE = 3  # at most, because a wall's label covers the back wall and both side walls
EDGE_JUMP = 0.05  # relative, as points.edge_threshold in a job spec


@dataclass(frozen=True)
class LiftingScore:
    """Means over planes, for the surface error over scenes; lengths in % of the distance to the camera.

    flatness: root mean square distance of a plane's lifted points to their best-fitting plane. bend: the part of it
    that a quadratic surface explains. tilt: degrees between the fitted and the exact normal. surface_error: mean
    distance of lifted points to the exact surface, without points on depth edges.
    """

    planes: int
    flatness: float
    bend: float
    tilt: float
    surface_error: float


def score_lifting(
    estimates: Sequence[FloatArray], scenes: Sequence[Scene], alignment: Alignment = "disparity"
) -> LiftingScore:
    """Score one map (H, W) per scene; maps are affine in the space `alignment`."""
    planes: list[tuple[float, float, float]] = []
    errors: list[float] = []
    for estimate, scene in zip(estimates, scenes, strict=True):
        everywhere = np.ones(scene.depth.shape, bool)
        depth = clipped_depth(estimate, scene.depth, everywhere, alignment, *SCENE_RANGE).astype(np.float32)
        points = _points(scene, depth)
        exact = _points(scene, scene.depth)
        for mask in planes_of(scene):
            planes.append(_score_plane(points[mask], exact[mask]))
        errors.append(_surface_error(points, exact, depth, scene.depth))
    flatness, bend, tilt = np.mean(planes, axis=0) if planes else (np.nan,) * 3
    return LiftingScore(len(planes), float(flatness), float(bend), float(tilt), float(np.mean(errors)))


def planes_of(scene: Scene) -> Iterator[NDArray[np.bool_]]:
    """Yield masks (H, W) of a scene's planes: floor, each wall, faces of cubes; without small ones.

    Candidate planes go through three pixels near each other; the one with the most pixels of the exact depth is chosen.
    """
    exact = _points(scene, scene.depth).astype(np.float64)
    for label in np.unique(scene.label):
        if label >= 2 and scene.objects[label - 2].shape not in FLAT_SHAPES:
            continue
        left = scene.label == label
        for _ in range(PLANES_A_SURFACE):
            mask = _widest_plane(exact, left)
            if mask.mean() < SMALLEST_PLANE:
                break
            yield mask
            left = left & ~mask


def _widest_plane(points: NDArray[np.float64], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    best = np.zeros_like(among)
    reach = max(2, among.shape[0] // 32)
    corners = among[:-reach, :-reach] & among[reach:, :-reach] & among[:-reach, reach:]
    places = np.argwhere(corners)
    for row, column in places[:: max(1, len(places) // CANDIDATES)]:
        origin = points[row, column]
        normal = np.cross(points[row + reach, column] - origin, points[row, column + reach] - origin)
        length = np.linalg.norm(normal)
        if length == 0:
            continue
        mask = among & (np.abs((points - origin) @ (normal / length)) < ON_PLANE * points[..., 2])
        if mask.sum() > best.sum():
            best = mask
    return best


def _score_plane(points: NDArray[np.float64], exact: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return (flatness %, bend %, tilt degrees) of lifted points (N, 3) whose exact points (N, 3) are on a plane."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    u, v, height = (centred @ axes.T).T
    sheet = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
    curved = sheet @ np.linalg.lstsq(sheet, height, rcond=None)[0]
    true_normal = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)[2][2]
    distance = np.linalg.norm(exact, axis=1).mean()
    tilt = np.degrees(np.arccos(min(1.0, abs(float(axes[2] @ true_normal)))))
    root_mean_squares = (float(np.sqrt(np.mean(part**2))) for part in (height, curved))
    flatness, bend = (100 * value / distance for value in root_mean_squares)
    return flatness, bend, float(tilt)


def _surface_error(
    points: NDArray[np.float64], exact: NDArray[np.float64], depth: FloatArray, true_depth: FloatArray
) -> float:
    """Return the mean distance of lifted points to the exact surface, in % of the mean exact distance."""
    open3d = import_open3d()
    height, width = depth.shape
    corner = np.arange(height * width).reshape(height, width)
    a, b, c, d = (part.ravel() for part in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]))
    triangles = np.concatenate([np.stack([a, b, c], axis=1), np.stack([b, d, c], axis=1)])
    torn = depth_edges(true_depth, EDGE_JUMP).ravel()
    triangles = triangles[~torn[triangles].all(axis=1)]  # without triangles that span two surfaces
    caster = open3d.t.geometry.RaycastingScene(nthreads=1)
    vertices = exact.reshape(-1, 3).astype(np.float32)
    caster.add_triangles(open3d.core.Tensor(vertices), open3d.core.Tensor(triangles.astype(np.uint32)))
    kept = ~(depth_edges(depth, EDGE_JUMP) | depth_edges(true_depth, EDGE_JUMP))
    queried = points[kept if kept.any() else np.ones_like(kept)].astype(np.float32)
    distances = caster.compute_distance(open3d.core.Tensor(queried), nthreads=1).numpy()
    return float(100 * distances.mean() / np.linalg.norm(exact, axis=-1).mean())


def _points(scene: Scene, depth: FloatArray) -> NDArray[np.float64]:
    return unproject(depth, scene.fx, scene.fy, scene.cx, scene.cy).astype(np.float64)
