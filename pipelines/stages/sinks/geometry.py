"""The camera and the depth range of a sample, and its points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.depth import Intrinsics, depth_range, intrinsics_from_fov, metric_depth
from jointdit.geometry.points import PointCloud, cloud_of, voxel_downsample, without_outliers
from pipelines.records import SampleResult

if TYPE_CHECKING:
    from pipelines.spec.job import JobSpec, PointsSpec

Source = Literal["given", "assumed", "calibrated"]


@dataclass(frozen=True)
class Geometry:
    """Pinhole intrinsics in pixels of the sample's image; depth in metres of its nearest and farthest pixel."""

    intrinsics: Intrinsics
    intrinsics_source: Source
    z_near: float
    z_far: float
    range_source: Source


def geometry_of(result: SampleResult, spec: JobSpec) -> Geometry:
    """Return the geometry of a finished sample whose disparity (H, W) has its final size.

    The field of view is that of the whole source image, of which `resize: crop` may leave a centred window. Metric
    depth maps define their own range; otherwise a calibration does, or else the spec. Range and field of view of the
    spec are assumptions unless the user gave them.
    """
    assert result.disparity is not None
    points, row = spec.output.points, result.sample.row
    height, width = result.disparity.shape
    source = row.depth if row.depth is not None else row.rgb
    source_height, source_width = (height, width) if source is None else source.shape[:2]
    left, top = (source_width - width) // 2, (source_height - height) // 2
    given, calibration = points.model_fields_set, result.calibration
    fov, intrinsics_source = points.fov_degrees, _source_of({"fov_degrees"} <= given)
    if calibration is not None and calibration.focal_pixels is not None and intrinsics_source == "assumed":
        fov = math.degrees(2 * math.atan(0.5 * source_height / calibration.focal_pixels))
        intrinsics_source = "calibrated"
    fx, fy, cx, cy = intrinsics_from_fov(fov, source_width, source_height)
    z_near, z_far, range_source = points.z_near, points.z_far, _source_of({"z_near", "z_far"} <= given)
    if row.depth is not None and spec.input.depth is not None and spec.input.depth.kind == "metric":
        valid = None if row.depth_valid is None else row.depth_valid[top : top + height, left : left + width]
        z_near, z_far = depth_range(row.depth[top : top + height, left : left + width], valid)
        range_source = "given"
    elif calibration is not None:
        z_near, z_far, range_source = calibration.z_near, calibration.z_far, "calibrated"
    return Geometry(
        intrinsics=Intrinsics(fx, fy, cx - left, cy - top),
        intrinsics_source=intrinsics_source,
        z_near=z_near,
        z_far=z_far,
        range_source=range_source,
    )


def valid_pixels(result: SampleResult) -> NDArray[np.bool_] | None:
    """Return where an input depth map has measurements, (H, W), or None where every pixel has a depth."""
    assert result.disparity is not None
    valid = result.sample.row.depth_valid
    if valid is None:
        return None
    height, width = result.disparity.shape
    left, top = (valid.shape[1] - width) // 2, (valid.shape[0] - height) // 2
    window = valid[top : top + height, left : left + width]
    return None if window.all() else window


def point_cloud(result: SampleResult, geometry: Geometry, points: PointsSpec) -> PointCloud:
    """Return the sample's points in metres, x right, y down, z forward, as `output.points` configures them."""
    assert result.rgb is not None
    assert result.disparity is not None
    return cloud_from(result.rgb, result.disparity, valid_pixels(result), geometry, points)


def cloud_from(
    rgb: NDArray[np.uint8],
    disparity: NDArray[np.float32],
    valid: NDArray[np.bool_] | None,
    geometry: Geometry,
    points: PointsSpec,
) -> PointCloud:
    """Return the points of an image (H, W, 3) and its relative disparity (H, W) where that is `valid` (H, W).

    Holes and depth edges are left out. Then the cloud is downsampled, and outliers are removed, if the spec asks for
    it.
    """
    depth = metric_depth(disparity, geometry.z_near, geometry.z_far)
    if valid is not None:
        depth = np.where(valid, depth, np.float32(np.nan))
    cloud = cloud_of(depth, rgb, geometry.intrinsics, points.edge_threshold, points.normals, points.confidence)
    if points.voxel is not None:
        cloud = voxel_downsample(cloud, points.voxel)
    if points.outliers is not None:
        cloud = without_outliers(cloud, points.outliers.neighbours, points.outliers.ratio)
    return cloud


def _source_of(is_given: bool) -> Source:
    return "given" if is_given else "assumed"
