"""Point clouds as Open3D, trimesh and plyfile read them, compared with exact scenes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pyarrow.parquet as pq
import pytest
import trimesh

from jointdit.geometry.depth import decode_depth_png, disparity_from_depth, metric_depth, unproject
from jointdit.geometry.open3d_import import import_open3d
from jointdit.geometry.points import PointCloud
from pipelines.records import Row, Sample, SampleResult
from pipelines.spec.job import JobSpec, load_spec
from pipelines.stages.sinks.geometry import Geometry, geometry_of, point_cloud
from pipelines.stages.sinks.ply import describe, ply_bytes, read_ply
from tests.exact_scenes import DISTANCES, FOV, exact_scene


def job(**points: Any) -> JobSpec:
    return load_spec(
        {
            "task": "depth-to-image",
            "input": {"uri": "in", "depth": {"kind": "metric"}},
            "output": {"uri": "out", "points": {"fov_degrees": FOV, **points}},
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


def geometry_and_bytes(**points: Any) -> tuple[Geometry, bytes]:
    result, spec = two_walls(), job(**points)
    geometry = geometry_of(result, spec)
    comments = describe("walls/0\nend_header ü", geometry, spec.output.points)
    return geometry, ply_bytes(point_cloud(result, geometry, spec.output.points), comments)


def test_two_walls_are_where_they_are() -> None:
    cloud = read_ply(geometry_and_bytes()[1])
    near, far = cloud.points[:, 2] < 3, cloud.points[:, 2] > 3
    np.testing.assert_allclose(cloud.points[near, 2], 2.0, rtol=1e-6)
    np.testing.assert_allclose(cloud.points[far, 2], 5.0, rtol=1e-6)
    assert (cloud.colours[near] == (200, 30, 40)).all()
    assert (cloud.colours[far] == (10, 20, 250)).all()
    assert cloud.points[near, 0].max() < cloud.points[far, 0].min()  # x right
    # Dropped: two columns at the jump, and the hole with the pixels around it.
    assert len(cloud) == 40 * 60 - 2 * 40 - 5 * 5


@pytest.mark.parametrize("extras", [{}, {"normals": True, "confidence": True}], ids=["plain", "all"])
def test_three_libraries_read_what_was_written(tmp_path: Path, extras: dict[str, Any]) -> None:
    data = geometry_and_bytes(**extras)[1]
    path = tmp_path / "a.ply"
    path.write_bytes(data)
    ours = read_ply(data)
    assert (ours.normals is not None, ours.confidence is not None) == (bool(extras), bool(extras))

    theirs = import_open3d().io.read_point_cloud(str(path))
    np.testing.assert_array_equal(np.asarray(theirs.points), ours.points)
    np.testing.assert_array_equal(np.round(np.asarray(theirs.colors) * 255), ours.colours)

    loaded = trimesh.load(path)
    np.testing.assert_array_equal(loaded.vertices, ours.points)
    np.testing.assert_array_equal(loaded.colors[:, :3], ours.colours)

    vertex = plyfile.PlyData.read(str(path))["vertex"]
    np.testing.assert_array_equal(np.stack([vertex[axis] for axis in "xyz"], axis=1), ours.points)
    np.testing.assert_array_equal(np.stack([vertex[c] for c in ("red", "green", "blue")], axis=1), ours.colours)
    if extras:
        assert ours.normals is not None
        np.testing.assert_array_equal(np.asarray(theirs.normals), ours.normals)
        np.testing.assert_array_equal(np.stack([vertex[f"n{axis}"] for axis in "xyz"], axis=1), ours.normals)
        np.testing.assert_array_equal(vertex["confidence"], ours.confidence)


def test_the_header_says_what_the_numbers_mean_and_cannot_be_broken_by_an_id() -> None:
    geometry, data = geometry_and_bytes(confidence=True, voxel=0.1, outliers={"ratio": 5.0})
    header = data[: data.index(b"\nend_header\n")].decode("ascii")
    lines = header.split("\n")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "comment sample walls/0 end-header \\xfc" in lines
    assert "comment coordinates x right, y down, z forward, camera at the origin, metres" in lines
    assert f"comment z_near {geometry.z_near:g} z_far {geometry.z_far:g} (given)" in lines
    assert "comment thinned to one point, the mean, in cubes of 0.1 metres" in lines
    assert any("20 neighbours more than 5 standard deviations" in line for line in lines)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1], "points, holds"),
        (lambda data: data.replace(b"binary_little", b"binary_big"), "is not a PLY file of points"),
        (lambda data: data.replace(b"property float x", b"property float w"), "is not a PLY file of points"),
        (lambda data: b"ply or not", "is not a PLY file of points"),
    ],
)
def test_what_is_not_ours_is_told(damage: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_ply(damage(geometry_and_bytes()[1]))


def test_no_points_are_a_file_too() -> None:
    data = ply_bytes(PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)))
    assert b"element vertex 0\n" in data
    assert data.endswith(b"end_header\n")
    assert len(read_ply(data)) == 0


def test_thinned_and_cleaned_as_asked() -> None:
    result = two_walls()
    geometry = geometry_of(result, job())
    everything = point_cloud(result, geometry, job().output.points)
    thin = point_cloud(result, geometry, job(voxel=0.2).output.points)
    assert 0 < len(thin) < len(everything) / 2
    clean = point_cloud(result, geometry, job(outliers={"neighbours": 8, "ratio": 0.5}).output.points)
    assert 0 < len(clean) < len(everything)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_jobs_points_of_an_exact_scene_lie_on_its_surface(make_job: Any, tmp_path: Path, name: str) -> None:
    """From a depth map in metres through the job, its 16-bit disparity and its PLY file and columns."""
    scene = exact_scene(name)
    folder = tmp_path / "maps"
    folder.mkdir()
    np.save(folder / "scene.npy", scene.depth)
    made = make_job(
        task="depth-to-image",
        input={"uri": str(folder), "prompt": "a scene", "depth": {"kind": "metric"}},
        output={"points": {"format": "both", "fov_degrees": FOV, "normals": True, "confidence": True}},
    )
    version = made.complete()
    storage = made.context.storage
    (row,) = pq.read_table(io.BytesIO(storage.read_bytes(version.files_of("kept")[0]))).to_pylist()
    cloud = read_ply(storage.read_bytes(row["pointcloud"]))
    assert 0.5 * scene.depth.size < len(cloud) < scene.depth.size  # edges are dropped
    assert scene.distance(cloud.points.astype(np.float64)).max() < 1e-3 * scene.size
    for column, values in zip(
        ("points", "colors", "normals", "confidence"),
        (cloud.points, cloud.colours, cloud.normals, cloud.confidence),
        strict=True,
    ):
        assert values is not None
        np.testing.assert_array_equal(np.array(row[column], values.dtype), values)
    # What anybody can make again from the columns alone, with the depth's 16 bits.
    depth = metric_depth(decode_depth_png(row["depth"]["bytes"]), row["z_near"], row["z_far"])
    again = unproject(depth, row["fx"], row["fy"], row["cx"], row["cy"]).reshape(-1, 3)
    assert scene.distance(again.astype(np.float64)).max() < 1e-3 * scene.size
