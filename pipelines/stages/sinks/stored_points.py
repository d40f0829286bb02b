"""Make the point cloud of a stored row that was rejected when it was made.

The stored depth has steps of 1/65535 of relative disparity, so a point lies up to half a step from where the run would
have put it. Everything else is as for any other sample (geometry.py, ply.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jointdit.errors import RowError
from jointdit.geometry.depth import Intrinsics, decode_depth_png
from pipelines.stages.readers.images import decode_image
from pipelines.stages.sinks.geometry import Geometry, cloud_from
from pipelines.stages.sinks.parquet import image_bytes
from pipelines.stages.sinks.ply import describe, ply_bytes

if TYPE_CHECKING:
    from pipelines.spec.job import PointsSpec

STORED = ("id", "rgb", "depth", "fx", "fy", "cx", "cy", "intrinsics_source", "z_near", "z_far", "params")  # columns
SOURCE = "from the stored depth, 16 bits of relative disparity"


def stored_points(row: Mapping[str, Any], points: PointsSpec) -> tuple[int, bytes] | None:
    """Return (number of points, PLY file) of a row of data/ or rejected/, from its columns STORED.

    Returns None where its image is not stored (`output.rgb: reference`), or where no cloud can be made.
    """
    image = image_bytes(row["rgb"])
    if image is None:
        return None
    made_with = json.loads(row["params"])
    geometry = Geometry(
        intrinsics=Intrinsics(row["fx"], row["fy"], row["cx"], row["cy"]),
        intrinsics_source=row["intrinsics_source"],
        z_near=row["z_near"],
        z_far=row["z_far"],
        range_source=made_with["range_source"],
    )
    try:
        rgb, _ = decode_image(image)
        disparity = decode_depth_png(row["depth"]["bytes"])
        valid = None if made_with["valid_fraction"] == 1.0 else disparity > 0.0
        cloud = cloud_from(rgb, disparity, valid, geometry, points)
    except RowError:
        return None
    return len(cloud), ply_bytes(cloud, [*describe(row["id"], geometry, points), SOURCE])
