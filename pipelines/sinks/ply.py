"""Point clouds as PLY: binary little-endian, float32 x y z in metres, uint8 red green blue.

The header's comments say what the numbers mean, because a PLY file has no other place for it. Format: Turk, "The PLY
Polygon File Format", 1994.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.safe_text import printable
from pipelines.sinks.geometry import Geometry

VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])  # 15 bytes, packed


def ply_bytes(points: NDArray[np.float32], colours: NDArray[np.uint8], comments: list[str] | None = None) -> bytes:
    """A PLY file of points (N, 3) and colours (N, 3). Comments are made printable ASCII, one line each."""
    assert points.shape == colours.shape
    assert points.shape[1:] == (3,)
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {_one_line(comment)}" for comment in comments or []),
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
        "end_header",
    ]
    vertices = np.empty(len(points), VERTEX)
    vertices["xyz"], vertices["rgb"] = points, colours
    return "\n".join([*header, ""]).encode("ascii") + vertices.tobytes()


def describe(sample_id: str, geometry: Geometry, edge_threshold: float) -> list[str]:
    """The comments of a sample's point cloud."""
    camera = geometry.intrinsics
    return [
        f"sample {sample_id}",
        "coordinates x right, y down, z forward, camera at the origin, metres",
        "depth z = 1 / (A + B d), d relative disparity, A = 1 / z_far, B = 1 / z_near - 1 / z_far",
        f"z_near {geometry.z_near:.9g} z_far {geometry.z_far:.9g} ({geometry.range_source})",
        f"fx {camera.fx:.9g} fy {camera.fy:.9g} cx {camera.cx:.9g} cy {camera.cy:.9g} "
        f"({geometry.intrinsics_source}; centre of pixel u at u + 0.5)",
        f"dropped points where depth jumps by more than {edge_threshold:g} in a 3x3 window",
    ]


def _one_line(text: str) -> str:
    return printable(" ".join(text.split())).encode("ascii", "backslashreplace").decode("ascii")
