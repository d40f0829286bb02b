"""Point clouds from depth maps: normals, confidence, downsampling, outlier removal.

    depth (H, W) --cloud_of--> PointCloud --voxel_downsample--> fewer points --without_outliers--> no outliers

The camera convention is that of depth.py: x right, y down, z forward, the camera at the origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import RowError
from jointdit.geometry.depth import Intrinsics, depth_jumps, unproject
from jointdit.geometry.open3d_import import import_open3d


@dataclass(frozen=True)
class PointCloud:
    """N points in the unit of their depth map (metres if metric).

    normals are unit vectors towards the camera. confidence falls linearly with the jump of depth around a point: 1
    without a jump, 0 at the edge threshold, beyond which points are dropped.
    """

    points: NDArray[np.float32]  # (N, 3)
    colours: NDArray[np.uint8]  # (N, 3)
    normals: NDArray[np.float32] | None = None  # (N, 3)
    confidence: NDArray[np.float32] | None = None  # (N,) in [0, 1]

    def __len__(self) -> int:
        return len(self.points)

    def at(self, index: NDArray[np.int64]) -> PointCloud:
        """Return the points at these indices (M,), in their order."""
        return PointCloud(
            self.points[index],
            self.colours[index],
            None if self.normals is None else self.normals[index],
            None if self.confidence is None else self.confidence[index],
        )


def cloud_of(
    depth: NDArray[np.float32],
    rgb: NDArray[np.uint8],
    intrinsics: Intrinsics,
    edge_threshold: float,
    normals: bool = False,
    confidence: bool = False,
) -> PointCloud:
    """Return the points of a depth map (H, W) with the colours of an image (H, W, 3), row by row.

    Holes (NaN, z <= 0), the pixels around them, and pixels whose relative jump of depth in the 3x3 window exceeds
    `edge_threshold` (see `depth_jumps`) are left out.
    """
    jumps = depth_jumps(depth)
    keep = jumps <= edge_threshold
    points = unproject(depth, *intrinsics)
    return PointCloud(
        points[keep],
        rgb[keep],
        surface_normals(points)[keep] if normals else None,
        (1.0 - jumps[keep] / edge_threshold).astype(np.float32) if confidence else None,
    )


def surface_normals(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return unit normals (H, W, 3) towards the camera for points (H, W, 3) on the pixel grid.

    They are the cross product of central differences, one-sided at the image's border, and exact for planes. A point
    without neighbours of finite depth gets NaN.
    """
    padded = np.pad(points.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    right = padded[1:-1, 2:] - padded[1:-1, :-2]
    across = np.cross(down, right)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (across / np.linalg.norm(across, axis=-1, keepdims=True)).astype(np.float32)


def voxel_downsample(cloud: PointCloud, voxel: float) -> PointCloud:
    """Merge the points of each cube of side `voxel` (in the points' unit) to one: the mean of all attributes.

    The result is in the order of each cube's first point, so it is deterministic. Open3D assigns points to cubes.
    Raises RowError if the cubes are too small to be numbered.
    """
    if not len(cloud):
        return cloud
    positions = cloud.points.astype(np.float64)
    low, high = positions.min(axis=0) - voxel / 2, positions.max(axis=0) + voxel / 2
    try:
        _, _, cubes = _open3d_cloud(cloud).voxel_down_sample_and_trace(voxel, low, high)
    except RuntimeError as error:
        raise RowError(
            f"point cloud spans {float((high - low).max()):.4g} m: voxel {voxel:g} m is too small."
        ) from error
    members = sorted((np.sort(np.asarray(cube, np.int64)) for cube in cubes), key=lambda cube: int(cube[0]))
    sizes = np.array([len(cube) for cube in members])
    order, starts = np.concatenate(members), np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        totals = np.add.reduceat(values[order].astype(np.float64), starts, axis=0)
        means: NDArray[np.float64] = totals / sizes.reshape(-1, *[1] * (values.ndim - 1))
        return means

    normals = None
    if cloud.normals is not None:
        together = mean(cloud.normals)
        length = np.linalg.norm(together, axis=1, keepdims=True)
        normals = np.where(length > 0, together / np.maximum(length, 1e-12), cloud.normals[order[starts]])
    return PointCloud(
        mean(cloud.points).astype(np.float32),
        np.rint(mean(cloud.colours)).astype(np.uint8),
        None if normals is None else normals.astype(np.float32),
        None if cloud.confidence is None else mean(cloud.confidence).astype(np.float32),
    )


def without_outliers(cloud: PointCloud, neighbours: int, ratio: float) -> PointCloud:
    """Remove statistical outliers, with Open3D.

    An outlier's mean distance to its nearest `neighbours` is more than `ratio` standard deviations above the mean of
    the cloud. Source: Rusu et al., Towards 3D Point Cloud Based Object Maps, 2008.
    """
    if len(cloud) <= neighbours:
        return cloud
    _, kept = _open3d_cloud(cloud).remove_statistical_outlier(neighbours, ratio)
    return cloud.at(np.sort(np.asarray(kept, np.int64)))


def _open3d_cloud(cloud: PointCloud) -> Any:
    open3d = import_open3d()
    return open3d.geometry.PointCloud(open3d.utility.Vector3dVector(cloud.points.astype(np.float64)))
