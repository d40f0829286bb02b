"""The fit of 1/z = A + B d: exact without noise, right with half of the pixels wrong, none where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from jointdit.geometry.calibration import INLIER, fit_inverse_depth
from jointdit.geometry.depth import disparity_from_depth, metric_depth
from tests.exact_scenes import exact_scene


def test_exact_maps_give_the_exact_range() -> None:
    depth = exact_scene("box").depth
    found = fit_inverse_depth(disparity_from_depth(depth), depth)
    assert found is not None
    assert (found.z_near, found.z_far) == pytest.approx((depth.min(), depth.max()), rel=1e-4)
    assert found.residual < 1e-5
    assert found.inlier_ratio == 1.0


def test_two_fifths_of_wrong_pixels_do_not_move_it() -> None:
    random = np.random.default_rng(5)
    disparity = random.random((64, 64), dtype=np.float32)
    depth = metric_depth(disparity, 1.5, 12.0) * (1 + 0.03 * random.standard_normal((64, 64)))
    wrong = random.random((64, 64)) < 0.4
    depth[wrong] = random.uniform(20, 80, int(wrong.sum()))
    found = fit_inverse_depth(disparity, depth.astype(np.float32))
    assert found is not None
    assert (found.z_near, found.z_far) == pytest.approx((1.5, 12.0), rel=0.03)
    assert found.inlier_ratio == pytest.approx(1 - wrong.mean(), abs=0.03)
    least_squares = np.polyfit(disparity.ravel(), 1 / depth.ravel(), 1)
    assert abs(1 / least_squares.sum() / 1.5 - 1) > 0.3  # plain least squares is far off


def test_holes_play_no_part() -> None:
    disparity = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    depth, valid = metric_depth(disparity, 2.0, 9.0), np.ones((32, 32), bool)
    valid[:20] = False
    depth[:19], depth[19] = 1.0, np.nan
    found = fit_inverse_depth(disparity, depth, valid)
    assert found is not None
    assert found.z_far == pytest.approx(9.0, rel=1e-3)
    assert found.inlier_ratio == 1.0


def test_the_farthest_point_is_no_farther_than_what_was_seen() -> None:
    disparity = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    depth = (1 / (0.7 * disparity - 0.01 + 0.05)).astype(np.float32)
    depth[disparity < 0.05] = 30.0  # the model's own limit; the line through the rest would end beyond it
    found = fit_inverse_depth(disparity, depth)
    assert found is not None
    assert 0 < found.z_near < found.z_far <= 30.0 * (1 + 1e-6)


@pytest.mark.parametrize("case", ["inverted", "flat disparity", "too few"])
def test_where_no_line_exists_there_is_no_calibration(case: str) -> None:
    disparity = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    depth = metric_depth(disparity, 1.0, 10.0)
    if case == "inverted":
        disparity = 1 - disparity
    elif case == "flat disparity":
        disparity = np.full_like(disparity, 0.5)
    else:
        depth[1:] = np.nan
        depth[0, 1:] = np.nan
    assert fit_inverse_depth(disparity, depth) is None


def test_unrelated_maps_have_few_inliers() -> None:
    random = np.random.default_rng(2)
    found = fit_inverse_depth(
        random.random((64, 64), dtype=np.float32), random.uniform(1, 10, (64, 64)).astype(np.float32)
    )
    assert found is None or (found.inlier_ratio < 0.4 and found.residual > INLIER)
