"""The camera and the depth range of a sample: what turns its disparity into points, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from jointdit.depth import Intrinsics, depth_edges, depth_range, intrinsics_from_fov, metric_depth, unproject
from pipelines.records import SampleResult

if TYPE_CHECKING:
    from pipelines.spec import JobSpec

Source = Literal["given", "assumed"]


@dataclass(frozen=True)
class Geometry:
    """Pinhole intrinsics in pixels of the sample's picture; depth in metres of its nearest and farthest pixel."""

    intrinsics: Intrinsics
    intrinsics_source: Source
    z_near: float
    z_far: float
    range_source: Source


def geometry_of(result: SampleResult, spec: JobSpec) -> Geometry:
    """The geometry of a finished sample, whose disparity (H, W) has the size that is written.

    The field of view is that of the whole source picture, of which a centred window may be left (`resize: crop`).
    Metric depth maps bring their own range; else the range is the spec's. Both are assumptions unless the spec gives
    them.
    """
    assert result.disparity is not None
    points, row = spec.output.points, result.sample.row
    height, width = result.disparity.shape
    source = row.depth if row.depth is not None else row.rgb
    source_height, source_width = (height, width) if source is None else source.shape[:2]
    left, top = (source_width - width) // 2, (source_height - height) // 2
    fx, fy, cx, cy = intrinsics_from_fov(points.fov_degrees, source_width, source_height)
    given = points.model_fields_set
    z_near, z_far = points.z_near, points.z_far
    range_source: Source = "given" if {"z_near", "z_far"} <= given else "assumed"
    if row.depth is not None and spec.input.depth is not None and spec.input.depth.kind == "metric":
        valid = None if row.depth_valid is None else row.depth_valid[top : top + height, left : left + width]
        z_near, z_far = depth_range(row.depth[top : top + height, left : left + width], valid)
        range_source = "given"
    return Geometry(
        intrinsics=Intrinsics(fx, fy, cx - left, cy - top),
        intrinsics_source="given" if "fov_degrees" in given else "assumed",
        z_near=z_near,
        z_far=z_far,
        range_source=range_source,
    )


def valid_pixels(result: SampleResult) -> NDArray[np.bool_] | None:
    """Where a depth map that was the input has measurements, (H, W); None where every pixel has a depth."""
    assert result.disparity is not None
    valid = result.sample.row.depth_valid
    if valid is None:
        return None
    height, width = result.disparity.shape
    left, top = (valid.shape[1] - width) // 2, (valid.shape[0] - height) // 2
    window = valid[top : top + height, left : left + width]
    return None if window.all() else window


def point_cloud(
    result: SampleResult, geometry: Geometry, edge_threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(points (N, 3) in metres, colours (N, 3)): x right, y down, z forward; holes and depth edges are left out."""
    assert result.rgb is not None
    assert result.disparity is not None
    depth = metric_depth(result.disparity, geometry.z_near, geometry.z_far)
    valid = valid_pixels(result)
    if valid is not None:
        depth = np.where(valid, depth, np.float32(np.nan))
    keep = ~depth_edges(depth, edge_threshold)
    return unproject(depth, *geometry.intrinsics)[keep], result.rgb[keep]
