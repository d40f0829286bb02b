"""Clouds against surfaces that are known exactly, and against Open3D's own unprojection."""

from __future__ import annotations

import numpy as np
import pytest

from jointdit.errors import RowError
from jointdit.geometry.depth import disparity_from_depth, fit_to_model, metric_depth, restore_size, unproject
from jointdit.geometry.open3d_import import import_open3d
from jointdit.geometry.points import PointCloud, cloud_of, surface_normals, voxel_downsample, without_outliers
from tests.exact_scenes import DISTANCES, RADIUS, SPHERE, exact_scene

EVERYTHING = 1e9  # an edge threshold that drops nothing


@pytest.mark.parametrize("name", DISTANCES)
def test_the_points_of_an_exact_depth_map_lie_on_the_surface(name: str) -> None:
    scene = exact_scene(name)
    cloud = cloud_of(scene.depth, scene.rgb, scene.camera, EVERYTHING)
    assert len(cloud) == scene.depth.size
    # float32 has 24 bits: half a step of the largest coordinate, a little more for three of them
    assert scene.distance(cloud.points.astype(np.float64)).max() < 2**-23 * 20


@pytest.mark.parametrize("name", ["sphere", "box"])
def test_flying_pixels_are_what_is_dropped(name: str) -> None:
    """A map that was made smaller and larger again has values between surfaces, as a model's map has."""
    scene = exact_scene(name, 192, 256)
    low, high = float(scene.depth.min()), float(scene.depth.max())
    small, mapping = fit_to_model(disparity_from_depth(scene.depth), 96, 128)
    depth = metric_depth(np.clip(restore_size(small, mapping), 0, 1), low, high)
    everything, steady = (cloud_of(depth, scene.rgb, scene.camera, limit) for limit in (EVERYTHING, 0.05))
    flying, kept = (scene.distance(cloud.points.astype(np.float64)) for cloud in (everything, steady))
    assert 0.9 * len(flying) < len(kept) < len(flying)
    assert np.quantile(flying, 0.99) > 0.03 * scene.size
    assert np.quantile(kept, 0.99) < 1e-3 * scene.size
    assert kept.max() < 0.1 * flying.max()


def test_unprojection_agrees_with_open3ds_of_rgbd() -> None:
    o3d = import_open3d()
    scene = exact_scene("box", 24, 32)
    cloud = cloud_of(scene.depth, scene.rgb, scene.camera, EVERYTHING)
    fx, fy, cx, cy = scene.camera
    # Open3D puts the centre of pixel u at u, we put it at u + 0.5; by default it truncates at 3 m and turns grey.
    camera = o3d.camera.PinholeCameraIntrinsic(32, 24, fx, fy, cx - 0.5, cy - 0.5)
    rgbd = o3d.geometry.RGBDImage.create_from_color_and_depth(
        o3d.geometry.Image(scene.rgb),
        o3d.geometry.Image(scene.depth),
        depth_scale=1.0,
        depth_trunc=100.0,
        convert_rgb_to_intensity=False,
    )
    theirs = o3d.geometry.PointCloud.create_from_rgbd_image(rgbd, camera)
    np.testing.assert_allclose(cloud.points, np.asarray(theirs.points), atol=1e-5)
    np.testing.assert_array_equal(cloud.colours, np.round(np.asarray(theirs.colors) * 255))


def test_holes_are_left_out_with_their_neighbours() -> None:
    depth = np.full((8, 8), 2.0, np.float32)
    depth[0, 0], depth[5, 5] = np.nan, 0.0
    cloud = cloud_of(depth, np.zeros((8, 8, 3), np.uint8), exact_scene("plane", 8, 8).camera, 0.1)
    assert len(cloud) == 64 - 4 - 9


def test_normals_are_the_surfaces_and_point_at_the_camera() -> None:
    scene = exact_scene("sphere")
    cloud = cloud_of(scene.depth, scene.rgb, scene.camera, 0.02, normals=True)
    assert cloud.normals is not None
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1.0, atol=1e-6)
    assert ((cloud.normals * cloud.points).sum(axis=1) < 0).all()
    on_sphere = np.abs(np.linalg.norm(cloud.points - SPHERE, axis=1) - RADIUS) < 1e-4
    exact = (cloud.points[on_sphere] - SPHERE) / RADIUS
    assert on_sphere.sum() > 300
    assert ((cloud.normals[on_sphere] * exact).sum(axis=1) > 0.995).all()  # 6 degrees; half a pixel's turn at most
    np.testing.assert_allclose(cloud.normals[~on_sphere], [[0, 0, -1]] * int((~on_sphere).sum()), atol=1e-4)


def test_confidence_falls_to_zero_where_points_begin_to_be_dropped() -> None:
    depth = np.cumprod(np.full((4, 12), 1.02), axis=1).astype(np.float32)
    depth[:, 6:] = depth[:, 5:6] * np.cumprod(np.full((4, 6), 1.0001), axis=1)
    rgb, camera = np.zeros((4, 12, 3), np.uint8), exact_scene("plane", 4, 12).camera
    threshold = 1.02**2 - 1 + 1e-6  # two steps: exactly what a window of the steep half spans
    confidence = cloud_of(depth, rgb, camera, threshold, confidence=True).confidence
    assert confidence is not None
    assert len(confidence) == depth.size
    rows = confidence.reshape(4, 12)
    np.testing.assert_allclose(rows[:, 1:5], 0.0, atol=1e-4)
    assert (rows[:, 7:] > 0.99).all()


def test_thinning_leaves_the_mean_of_each_cube_in_a_fixed_order() -> None:
    random = np.random.default_rng(3)
    # A full cube of points, so that the grid of cubes begins where the test's does: at the lowest point less half one.
    corner = np.zeros((1, 3), np.float32)
    points = np.concatenate([corner, random.random((400, 3), dtype=np.float32)])
    normals = random.standard_normal((401, 3)).astype(np.float32)
    cloud = PointCloud(
        points, random.integers(0, 256, (401, 3), dtype=np.uint8), normals, random.random(401, dtype=np.float32)
    )
    thin = voxel_downsample(cloud, 0.25)
    cells = np.floor((points + 0.125) / 0.25).astype(int) @ (1, 10, 100)
    _, first, label = np.unique(cells, return_index=True, return_inverse=True)
    order = np.argsort(first)
    assert len(thin) == len(first)
    for number, cell in enumerate(order):
        inside = label == cell
        np.testing.assert_allclose(thin.points[number], points[inside].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(thin.colours[number], cloud.colours[inside].mean(axis=0), atol=0.51)
        assert thin.confidence is not None
        assert cloud.confidence is not None
        assert thin.confidence[number] == pytest.approx(cloud.confidence[inside].mean(), abs=1e-6)
    assert thin.normals is not None
    np.testing.assert_allclose(np.linalg.norm(thin.normals, axis=1), 1.0, atol=1e-6)
    again = voxel_downsample(cloud, 0.25)
    np.testing.assert_array_equal(again.points, thin.points)
    assert len(voxel_downsample(cloud.at(np.zeros(0, np.int64)), 0.25)) == 0
    with pytest.raises(RowError, match="too small"):
        voxel_downsample(cloud, 1e-12)


def test_strays_go_and_the_surface_stays_in_order() -> None:
    scene = exact_scene("plane", 24, 32)
    points = unproject(scene.depth, *scene.camera).reshape(-1, 3)
    near = points[points[:, 2] < 3]
    stray = np.array([[0.0, 0.0, 0.4]], np.float32)
    cloud = PointCloud(np.concatenate([near, stray]), np.zeros((len(near) + 1, 3), np.uint8))
    clean = without_outliers(cloud, 8, 6.0)
    np.testing.assert_array_equal(clean.points, near)
    assert len(without_outliers(cloud.at(np.arange(5)), 8, 6.0)) == 5


def test_normals_of_a_hole_are_no_numbers() -> None:
    assert np.isnan(surface_normals(np.full((3, 3, 3), np.nan, np.float32))).all()
