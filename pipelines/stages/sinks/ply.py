"""Point clouds as binary PLY with colours, optional normals and confidence.

Little-endian: float32 x y z in metres, uint8 red green blue, float32 normals and confidence.

The comments in the header say what the numbers mean, because PLY has no other place for it. Format: Turk, "The PLY
Polygon File Format", 1994. The names nx, ny, nz and confidence follow the scans of that time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.points import PointCloud
from pipelines.stages.sinks.geometry import Geometry
from pipelines.store.safe_text import printable

if TYPE_CHECKING:
    from pipelines.spec.job import PointsSpec

XYZ = [(axis, "<f4") for axis in "xyz"]
NORMAL = [(f"n{axis}", "<f4") for axis in "xyz"]
RGB = [(colour, "u1") for colour in ("red", "green", "blue")]
CONFIDENCE = [("confidence", "<f4")]
KINDS = {"float": "<f4", "uchar": "u1"}
NAMES = {kind: name for name, kind in KINDS.items()}


def ply_bytes(cloud: PointCloud, comments: list[str] | None = None) -> bytes:
    """Return a PLY file of a point cloud. Comments become printable ASCII, one line each."""
    fields = [*XYZ, *(NORMAL if cloud.normals is not None else []), *RGB]
    fields += CONFIDENCE if cloud.confidence is not None else []
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {_one_line(comment)}" for comment in comments or []),
        f"element vertex {len(cloud)}",
        *(f"property {NAMES[kind]} {name}" for name, kind in fields),
        "end_header",
    ]
    vertices = np.empty(len(cloud), np.dtype(fields))  # packed
    _put(vertices, XYZ, cloud.points)
    _put(vertices, RGB, cloud.colours)
    if cloud.normals is not None:
        _put(vertices, NORMAL, cloud.normals)
    if cloud.confidence is not None:
        vertices["confidence"] = cloud.confidence
    return "\n".join([*header, ""]).encode("ascii") + vertices.tobytes()


def read_ply(data: bytes) -> PointCloud:
    """Read a file that `ply_bytes` wrote. Raises ValueError with what is wrong for anything else."""
    header, separator, body = data.partition(b"end_header\n")
    lines = header.decode("ascii", "replace").splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith("element ")]
    if not separator or lines[:2] != ["ply", "format binary_little_endian 1.0"] or len(counts) != 1:
        raise ValueError("is not a PLY file of points")
    properties = [line.split()[1:] for line in lines if line.startswith("property ")]
    try:
        vertex = np.dtype([(name, KINDS[kind]) for kind, name in properties])
        count = int(counts[0])
    except (KeyError, ValueError, TypeError):
        raise ValueError("is not a PLY file of points") from None
    names = vertex.names or ()
    if not {name for name, _ in (*XYZ, *RGB)} <= set(names):
        raise ValueError("is not a PLY file of points")
    if len(body) != vertex.itemsize * count:
        raise ValueError(f"says {count} points, holds {len(body) / vertex.itemsize:g}")
    vertices = np.frombuffer(body, vertex)
    return PointCloud(
        _take(vertices, XYZ, np.float32),
        _take(vertices, RGB, np.uint8),
        _take(vertices, NORMAL, np.float32) if "nx" in names else None,
        vertices["confidence"].copy() if "confidence" in names else None,
    )


def describe(sample_id: str, geometry: Geometry, points: PointsSpec) -> list[str]:
    """Return the comments of a sample's point cloud."""
    camera = geometry.intrinsics
    lines = [
        f"sample {sample_id}",
        "coordinates x right, y down, z forward, camera at the origin, metres",
        "depth z = 1 / (A + B d), d relative disparity, A = 1 / z_far, B = 1 / z_near - 1 / z_far",
        f"z_near {geometry.z_near:.9g} z_far {geometry.z_far:.9g} ({geometry.range_source})",
        f"fx {camera.fx:.9g} fy {camera.fy:.9g} cx {camera.cx:.9g} cy {camera.cy:.9g} "
        f"({geometry.intrinsics_source}; centre of pixel u at u + 0.5)",
        f"dropped points where depth jumps by more than {points.edge_threshold:g} in a 3x3 window",
    ]
    if points.confidence:
        lines.append("confidence 1 where depth is even in the 3x3 window, 0 where it jumps by that threshold")
    if points.voxel is not None:
        lines.append(f"thinned to one point, the mean, in cubes of {points.voxel:g} metres")
    if points.outliers is not None:
        lines.append(
            f"dropped outliers: mean distance to {points.outliers.neighbours} neighbours more than "
            f"{points.outliers.ratio:g} standard deviations above the mean"
        )
    return lines


def _put(vertices: NDArray[Any], fields: list[tuple[str, str]], values: NDArray[Any]) -> None:
    assert values.shape == (len(vertices), len(fields))
    for column, (name, _) in enumerate(fields):
        vertices[name] = values[:, column]


def _take(vertices: NDArray[Any], fields: list[tuple[str, str]], kind: Any) -> NDArray[Any]:
    return np.stack([vertices[name] for name, _ in fields], axis=1).astype(kind)


def _one_line(text: str) -> str:
    """Return visible ASCII on one line, without "end_header", which trimesh searches for in every line."""
    line = printable(" ".join(text.split())).encode("ascii", "backslashreplace").decode("ascii")
    return line.replace("end_header", "end-header")
