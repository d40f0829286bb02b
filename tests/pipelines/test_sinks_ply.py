"""Point clouds as Open3D reads them, and against a rendered scene whose surface is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jointdit.depth import depth_range, disparity_from_depth, unproject
from jointdit.scenes.open3d_import import import_open3d
from pipelines.records import Row, Sample, SampleResult
from pipelines.sinks.geometry import Geometry, geometry_of, point_cloud
from pipelines.sinks.ply import describe, ply_bytes
from pipelines.spec import load_spec

SPEC = load_spec(
    {
        "task": "depth-to-image",
        "input": {"uri": "in", "depth": {"kind": "metric"}},
        "output": {"uri": "out", "points": {"fov_degrees": 50.0}},
    }
)


def two_walls() -> SampleResult:
    """A wall at 2 m to the left, one at 5 m to the right, and a hole."""
    depth = np.full((40, 60), 2.0, np.float32)
    depth[:, 30:] = 5.0
    valid = np.ones(depth.shape, bool)
    valid[5:8, 5:8] = False
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, :30], rgb[:, 30:] = (200, 30, 40), (10, 20, 250)
    row = Row("walls", "in/a.npy", 0, prompt="two walls", depth=depth, depth_valid=valid)
    return SampleResult(Sample("walls/0", row, 0, 0, 1), rgb=rgb, disparity=disparity_from_depth(depth, valid))


def geometry_and_bytes() -> tuple[Geometry, bytes]:
    result = two_walls()
    geometry = geometry_of(result, SPEC)
    comments = describe("walls/0\nend_header ü", geometry, 0.05)
    return geometry, ply_bytes(*point_cloud(result, geometry, 0.05), comments)


def test_open3d_reads_points_and_colours(tmp_path: Path) -> None:
    _, data = geometry_and_bytes()
    (tmp_path / "a.ply").write_bytes(data)
    cloud = import_open3d().io.read_point_cloud(str(tmp_path / "a.ply"))
    points, colours = np.asarray(cloud.points), np.round(np.asarray(cloud.colors) * 255)
    near, far = points[:, 2] < 3, points[:, 2] > 3
    np.testing.assert_allclose(points[near, 2], 2.0, rtol=1e-6)
    np.testing.assert_allclose(points[far, 2], 5.0, rtol=1e-6)
    assert (colours[near] == (200, 30, 40)).all()
    assert (colours[far] == (10, 20, 250)).all()
    assert points[near, 0].max() < points[far, 0].min()  # x right
    # Dropped: two columns at the jump, and the hole with the pixels around it.
    assert len(points) == 40 * 60 - 2 * 40 - 5 * 5


def test_the_header_says_what_the_numbers_mean_and_cannot_be_broken_by_an_id() -> None:
    geometry, data = geometry_and_bytes()
    header = data[: data.index(b"\nend_header\n")].decode("ascii")
    lines = header.split("\n")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "comment sample walls/0 end_header \\xfc" in lines
    assert "comment coordinates x right, y down, z forward, camera at the origin, metres" in lines
    assert f"comment z_near {geometry.z_near:g} z_far {geometry.z_far:g} (given)" in lines
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[-1])
    assert len(data) == data.index(b"end_header\n") + len(b"end_header\n") + 15 * count


def test_no_points_are_a_file_too(tmp_path: Path) -> None:
    data = ply_bytes(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
    assert b"element vertex 0\n" in data
    assert data.endswith(b"end_header\n")


def test_the_points_of_a_rendered_scene_lie_on_its_surface() -> None:
    from jointdit.scenes import render_scene

    scene = render_scene(3, width=64, height=64)
    truth = unproject(scene.depth, scene.fx, scene.fy, scene.cx, scene.cy)
    row = Row("scene", "in/a.npy", 0, depth=scene.depth, depth_valid=np.ones(scene.depth.shape, bool))
    disparity = disparity_from_depth(scene.depth)
    result = SampleResult(Sample("scene/0", row, 0, 0, 1), rgb=scene.rgb, disparity=disparity)
    z_near, z_far = depth_range(scene.depth)
    fov = float(2 * np.degrees(np.arctan(32 / scene.fy)))
    points_settings = {"fov_degrees": fov, "edge_threshold": 1e9}
    spec = load_spec(
        {
            "task": "depth-to-image",
            "input": {"uri": "in", "depth": {"kind": "metric"}},
            "output": {"uri": "out", "points": points_settings},
        }
    )
    geometry = geometry_of(result, spec)
    assert (geometry.z_near, geometry.z_far) == (z_near, z_far)
    points, colours = point_cloud(result, geometry, spec.output.points.edge_threshold)
    np.testing.assert_allclose(points, truth.reshape(-1, 3), atol=1e-3 * z_far)
    np.testing.assert_array_equal(colours, scene.rgb.reshape(-1, 3))
