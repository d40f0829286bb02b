"""Depth: sizes there and back, the 16-bit image, metres, points. Open3D is the reference for unprojection."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jointdit.errors import InputError, RowError
from jointdit.geometry import depth as d
from jointdit.geometry.open3d_import import import_open3d


def ramp(height: int, width: int, a: float = 0.3, b: float = 0.7) -> np.ndarray:
    """A plane over the pixel centres, as a fraction of the image: the same plane at any size."""
    v, u = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return (a * u[None, :] + b * v[:, None]).astype(np.float32)


# --- sizes ---


def test_fit_keeps_the_aspect_and_pads_a_photo_to_multiples_of_16() -> None:
    rgb_image = np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8)
    fitted, mapping = d.fit_to_model(rgb_image, 128, 128)
    assert (mapping.content_width, mapping.content_height) == (128, 90)
    assert fitted.shape == (96, 128, 3)
    assert fitted.dtype == np.uint8
    assert (fitted[:3] == fitted[3]).all()
    assert (fitted[93:] == fitted[92]).all()
    assert d.restore_size(np.zeros((96, 128), np.float32), mapping).shape == (700, 1000)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    box=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    mode=st.sampled_from(["fit", "crop", "stretch"]),
)
def test_any_size_goes_there_and_back(height: int, width: int, box: tuple[int, int], mode: d.ResizeMode) -> None:
    box_height, box_width = 16 * box[0], 16 * box[1]
    source = np.full((height, width), 0.25, np.float32)
    fitted, mapping = d.fit_to_model(source, box_height, box_width, mode)
    assert fitted.shape[0] % 16 == 0
    assert fitted.shape[1] % 16 == 0
    assert fitted.shape[0] <= box_height
    assert fitted.shape[1] <= box_width
    if mode != "fit":
        assert fitted.shape == (box_height, box_width)
    assert (fitted == np.float32(0.25)).all()
    assert d.restore_size(fitted, mapping).shape == d.source_window(source, mapping).shape
    if mode != "crop":
        assert d.restore_size(fitted, mapping).shape == source.shape


@pytest.mark.parametrize("size", [(700, 1000), (96, 61), (333, 128), (50, 40)])
@pytest.mark.parametrize("mode", ["fit", "crop", "stretch"])
def test_a_ramp_comes_back_aligned_to_a_thousandth_of_a_pixel(size: tuple[int, int], mode: d.ResizeMode) -> None:
    """A shift by half a pixel of either grid, the classic fault, would show as 0.5 / size of the ramp's span."""
    source = ramp(*size)
    fitted, mapping = d.fit_to_model(source, 128, 128, mode)
    back = d.restore_size(fitted, mapping)
    window = d.source_window(source, mapping)
    # Outside the image there is nothing to interpolate with: the ramp flattens in the two pixels at the border.
    margin_y, margin_x = math.ceil(2 / min(mapping.scale_y, 1)), math.ceil(2 / min(mapping.scale_x, 1))
    inner = (slice(margin_y, -margin_y), slice(margin_x, -margin_x))
    error_in_pixels = np.abs(back - window)[inner] / min(0.3 / size[1], 0.7 / size[0])
    assert error_in_pixels.max() < 1e-3


@pytest.mark.parametrize("mode", ["fit", "crop", "stretch"])
def test_the_mapping_says_where_a_source_point_lies_at_the_models_size(mode: d.ResizeMode) -> None:
    """Intrinsics moved to the model's size see the same ray through the same surface point."""
    source = ramp(210, 300)
    fitted, mapping = d.fit_to_model(source, 64, 96, mode)
    intrinsics = d.intrinsics_from_fov(50.0, 300, 210)
    there = mapping.intrinsics_to_model(intrinsics)
    v, u = 32, 40  # a pixel of the model's image, its ray, and the source point on that ray
    ray = ((u + 0.5 - there.cx) / there.fx, (v + 0.5 - there.cy) / there.fy)
    source_u, source_v = ray[0] * intrinsics.fx + intrinsics.cx, ray[1] * intrinsics.fy + intrinsics.cy
    assert fitted[v, u] == pytest.approx(0.3 * source_u / 300 + 0.7 * source_v / 210, abs=1e-5)
    back = mapping.intrinsics_to_window(there)
    window = (intrinsics.cx - mapping.window_left, intrinsics.cy - mapping.window_top)
    assert back == pytest.approx((intrinsics.fx, intrinsics.fy, *window))


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 16"):
        d.plan_fit(10, 10, 100, 128)
    with pytest.raises(InputError, match="fit, crop, stretch"):
        d.plan_fit(10, 10, 128, 128, "zoom")  # type: ignore[arg-type]
    with pytest.raises(RowError, match="empty"):
        d.plan_fit(0, 10, 128, 128)
    with pytest.raises(RowError, match="float64"):
        d.fit_to_model(np.zeros((4, 4)), 16, 16)
    with pytest.raises(RowError, match="its mapping expects"):
        d.restore_size(np.zeros((16, 16), np.float32), d.plan_fit(10, 20, 32, 32))


# --- the 16-bit image ---


def test_the_16_bit_image_keeps_every_level_and_65535_is_nearest() -> None:
    disparity = (np.arange(65536).reshape(256, 256) / 65535).astype(np.float32)
    data = d.encode_depth_png(disparity)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "I;16"
    assert np.asarray(image)[255, 255] == 65535
    assert (np.asarray(image).ravel() == np.arange(65536)).all()
    np.testing.assert_array_equal(d.decode_depth_png(data), disparity)
    assert data == d.encode_depth_png(disparity)


def test_holes_are_zero_and_the_farthest_valid_pixel_is_not() -> None:
    disparity = np.array([[0.0, 0.5], [1.0, np.nan]], np.float32)
    levels = np.asarray(Image.open(io.BytesIO(d.encode_depth_png(disparity, np.isfinite(disparity)))))
    assert levels.tolist() == [[1, 32768], [65535, 0]]


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (1.5, "normalise"), (-0.1, "normalise")])
def test_values_that_cannot_be_written_are_refused(value: float, what: str) -> None:
    with pytest.raises(RowError, match=what):
        d.encode_depth_png(np.full((4, 4), value, np.float32))


def test_images_that_are_not_16_bit_png_are_refused() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="PNG")
    with pytest.raises(RowError, match="16-bit"):
        d.decode_depth_png(buffer.getvalue())
    with pytest.raises(RowError, match="cannot be decoded"):
        d.decode_depth_png(buffer.getvalue()[:40])


# --- relative disparity and metres ---


def test_metres_to_disparity_and_back() -> None:
    z = np.random.default_rng(1).uniform(0.7, 40.0, (20, 30)).astype(np.float32)
    disparity = d.disparity_from_depth(z)
    assert disparity.min() == 0.0
    assert disparity.max() == 1.0
    assert disparity.argmax() == z.argmin()
    assert disparity.argmin() == z.argmax()
    np.testing.assert_allclose(d.metric_depth(disparity, *d.depth_range(z)), z, rtol=1e-5)


def test_metric_depth_at_its_ends_and_in_the_middle() -> None:
    z = d.metric_depth(np.array([[0.0, 0.5, 1.0]], np.float32), 1.0, 3.0)
    np.testing.assert_allclose(z, [[3.0, 1.5, 1.0]], rtol=1e-6)  # the middle of 1/3 and 1 is 2/3
    with pytest.raises(InputError, match="z_near"):
        d.metric_depth(z, 3.0, 1.0)


def test_disparity_input_keeps_its_order() -> None:
    disparity = d.disparity_from_depth(np.array([[10.0, 30.0, 20.0]], np.float32), kind="disparity")
    assert disparity.tolist() == [[0.0, 1.0, 0.5]]


def test_holes_are_filled_before_the_min_max_so_they_do_not_move_it() -> None:
    z = np.random.default_rng(2).uniform(1.0, 5.0, (17, 23)).astype(np.float32)
    whole = d.disparity_from_depth(z)
    valid = np.random.default_rng(3).random(z.shape) > 0.4
    valid[z == z.min()] = valid[z == z.max()] = True
    holed = np.where(valid, z, 0.0).astype(np.float32)  # 0 m would be infinitely near
    filled = d.disparity_from_depth(holed, valid)
    np.testing.assert_allclose(filled[valid], whole[valid], atol=1e-6)
    assert np.isfinite(filled).all()
    assert filled.min() == 0.0
    assert filled.max() == 1.0


def test_a_hole_takes_the_values_around_it() -> None:
    values = np.concatenate([np.full((32, 32), 2.0), np.full((32, 32), 8.0)], axis=1)
    valid = np.ones(values.shape, bool)
    valid[8:12, 8:12] = valid[20:24, 50:54] = False
    np.testing.assert_array_equal(d.fill_holes(np.where(valid, values, -1.0), valid), values)


@pytest.mark.parametrize(
    ("depth", "what"),
    [([[1.0, -2.0]], "z <= 0"), ([[3.0, 3.0]], "constant"), ([[np.nan, np.inf]], "no valid pixel")],
)
def test_maps_without_meaning_are_bad_rows(depth: list[list[float]], what: str) -> None:
    with pytest.raises(RowError, match=what):
        d.disparity_from_depth(np.array(depth, np.float32))


# --- points ---


def test_unprojection_agrees_with_open3d() -> None:
    o3d = import_open3d()
    z = np.random.default_rng(4).uniform(0.5, 4.0, (12, 16)).astype(np.float32)
    camera = d.intrinsics_from_fov(60.0, 16, 12)
    points = d.unproject(z, *camera)
    # Open3D puts the centre of pixel u at u, we put it at u + 0.5.
    theirs = o3d.camera.PinholeCameraIntrinsic(16, 12, camera.fx, camera.fy, camera.cx - 0.5, camera.cy - 0.5)
    cloud = o3d.geometry.PointCloud.create_from_depth_image(o3d.geometry.Image(z), theirs, depth_scale=1.0)
    np.testing.assert_allclose(points.reshape(-1, 3), np.asarray(cloud.points), atol=1e-5)


def test_axes_and_field_of_view() -> None:
    camera = d.intrinsics_from_fov(90.0, 200, 100)
    assert camera == pytest.approx((50.0, 50.0, 100.0, 50.0))
    points = d.unproject(np.full((100, 200), 2.0, np.float32), *camera)
    assert points[0, 0, 0] < 0 < points[0, -1, 0]  # x right
    assert points[0, 0, 1] < 0 < points[-1, 0, 1]  # y down
    assert points[0, 100, 1] == pytest.approx(
        -2.0 * 49.5 / 50
    )  # the topmost centre is half a pixel inside the 45 degree ray
    with pytest.raises(InputError, match="field of view"):
        d.intrinsics_from_fov(180.0, 10, 10)


def test_edges_are_the_jumps_and_not_the_slopes() -> None:
    z = np.full((9, 9), 1.0, np.float32)
    z[:, 5:] = 2.0
    edges = d.depth_edges(z, 0.1)
    assert edges[:, 4:6].all()
    assert not edges[:, :4].any()
    assert not edges[:, 6:].any()
    slope = np.linspace(1.0, 1.2, 9, dtype=np.float32)[None, :].repeat(9, axis=0)
    assert not d.depth_edges(slope, 0.1).any()


def test_holes_make_their_neighbours_edges() -> None:
    z = np.ones((5, 5), np.float32)
    z[2, 2] = np.nan
    edges = d.depth_edges(z, 0.1)
    assert edges[1:4, 1:4].all()
    assert edges.sum() == 9
    assert d.depth_edges(np.full((3, 3), np.nan, np.float32), 0.1).all()
