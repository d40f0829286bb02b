"""One estimate against one relative disparity: scores that do not see scale and shift, and do see everything else."""

from __future__ import annotations

import numpy as np
import pytest

from jointdit.evaluation.agreement import ASSUMED_RANGE, ensemble_correlation, ensemble_spread, pair_agreement
from jointdit.evaluation.metrics import depth_metrics
from jointdit.geometry.depth import disparity_from_depth, metric_depth
from jointdit.scenes import render_scene

MAPS = [disparity_from_depth(render_scene(seed, 48, 48).depth) for seed in range(3)]


def test_scale_and_shift_of_an_estimate_do_not_count():
    for alignment, estimate in (("disparity", MAPS[0]), ("depth", metric_depth(MAPS[0], *ASSUMED_RANGE))):
        same = pair_agreement(0.3 * estimate + 0.2, MAPS[0], alignment)
        assert same.abs_rel == pytest.approx(0, abs=1e-4)
        assert same.delta1 == 1
        assert same.correlation == pytest.approx(1, abs=1e-3)


def test_it_is_the_benchmarks_protocol_over_the_assumed_range():
    noisy = np.clip(MAPS[0] + np.random.default_rng(0).normal(0, 0.05, MAPS[0].shape), 0.001, 1).astype(np.float32)
    found = pair_agreement(noisy, MAPS[0])
    near, far = ASSUMED_RANGE
    truth = metric_depth(MAPS[0], near, far)
    expected = depth_metrics(noisy, truth, None, "disparity", min_depth=near, max_depth=far)
    assert found[:2] == pytest.approx((expected["abs_rel"], expected["delta1"]), rel=1e-4)


def test_another_scene_and_an_inverted_map_do_not_agree():
    own = pair_agreement(MAPS[0], MAPS[0])
    inverted = pair_agreement(1 - MAPS[0], MAPS[0])
    for other in (pair_agreement(MAPS[1], MAPS[0]), inverted):
        assert other.abs_rel > own.abs_rel + 0.05
        assert other.delta1 < own.delta1
        assert other.correlation < own.correlation - 0.2
    # No better than the best constant: a negative scale would make it perfect.
    target = 1 / metric_depth(MAPS[0], *ASSUMED_RANGE)
    assert inverted.abs_rel == pytest.approx(float(np.mean(np.abs(target / target.mean() - 1))), rel=1e-3)


def test_what_two_smooth_surfaces_share_is_no_correlation():
    y, x = np.mgrid[0:48, 0:48].astype(np.float32) / 47
    floor = 0.2 + 0.6 * y
    box = ((x > 0.3) & (x < 0.5) & (y > 0.4) & (y < 0.7)) * np.float32(0.35)
    elsewhere = ((x > 0.6) & (x < 0.8) & (y > 0.4) & (y < 0.7)) * np.float32(0.35)
    other = pair_agreement(floor + elsewhere, floor + box)
    assert other.delta1 > 0.7
    assert other.correlation < 0.1 < other.delta1
    # By hand, with numpy's own fit: least squares over 1, x, y, x^2, xy, ... y^6.
    surface = (
        np.stack([x**i * y**j for i in range(7) for j in range(7 - i)], axis=-1).reshape(-1, 28).astype(np.float64)
    )
    maps = [np.clip(each, 0, 1).ravel() for each in (floor + elsewhere, floor + box)]
    left = [values - surface @ np.linalg.lstsq(surface, values, rcond=None)[0] for values in maps]
    assert other.correlation == pytest.approx(np.corrcoef(*left)[0, 1], abs=0.06)  # DETAIL, and the scale of the fit
    # Without details both say the same, whatever noise there is below a hundredth of the range.
    noise = np.random.default_rng(0).normal(0, 0.001, x.shape).astype(np.float32)
    assert pair_agreement(floor + noise, floor).correlation > 0.9


def test_where_nothing_can_be_said_there_is_no_score():
    flat, broken = np.full_like(MAPS[0], 0.5), MAPS[0].copy()
    broken[3, 4] = np.nan
    for estimate, disparity in ((flat, MAPS[0]), (MAPS[0], flat), (broken, MAPS[0]), (MAPS[0], broken)):
        assert pair_agreement(estimate, disparity) is None
    assert ensemble_spread(np.stack([MAPS[0], broken])) is None
    assert ensemble_spread(np.stack([flat, flat])) is None


def test_the_spread_of_an_ensemble_grows_with_what_its_members_disagree_about():
    rng = np.random.default_rng(0)

    def spread(noise):
        return ensemble_spread(np.stack([2 * MAPS[0] + rng.normal(0, noise, MAPS[0].shape) for _ in range(5)]))

    assert ensemble_spread(np.stack([MAPS[0], 0.5 * MAPS[0] + 0.1])) == pytest.approx(0, abs=1e-5)
    assert 0 < spread(0.01) < spread(0.1)
    # The median distance of normal noise from its centre is 0.6745 sigma; here by Monte Carlo in metres.
    members = [np.clip(MAPS[0] + rng.normal(0, 0.005, MAPS[0].shape), 0, 1) for _ in range(9)]
    depths = np.stack([metric_depth(each.astype(np.float32), *ASSUMED_RANGE) for each in members])
    middle = np.median(depths, axis=0)
    in_metres = float(np.mean(np.median(np.abs(depths - middle), axis=0) / middle))
    assert ensemble_spread(np.stack(members).astype(np.float32)) == pytest.approx(in_metres, rel=0.1)


def test_estimates_that_share_the_room_and_not_the_objects_do_not_agree():
    y, x = np.mgrid[0:48, 0:48].astype(np.float32) / 47
    room = np.maximum(0.8 * y, 0.3)
    places = [((x - 0.2 - 0.2 * n) ** 2 + (y - 0.5) ** 2 < 0.01) * np.float32(0.3) for n in range(4)]
    same = np.stack([room + places[0] + 0.001 * n for n in range(4)])
    assert ensemble_correlation(same) == pytest.approx(1, abs=1e-3)
    elsewhere = np.stack([room + place for place in places])
    assert ensemble_correlation(elsewhere) < 0.3
    assert ensemble_spread(elsewhere) < 0.05  # in the median: most of the room is the same
