"""Merging estimates of one image: what is recovered, what the outlier does, and where the alignment stops."""

import itertools

import numpy as np
import pytest

from jointdit.errors import InputError
from jointdit.evaluation.ensemble import align_to_consensus, ensemble_maps


@pytest.fixture(scope="module")
def truth():
    rows, columns = np.mgrid[0:40, 0:56]
    surface = 0.5 + 0.3 * np.sin(rows / 9) + 0.2 * np.cos(columns / 7) + (columns > 30) * 0.4
    surface -= surface.min()
    return (surface / surface.max()).astype(np.float32)


def distorted(truth, count, noise=0.0, seed=0):
    """Estimates (count, H, W): noise of its own each, then a scale and a shift."""
    rng = np.random.default_rng(seed)
    noisy = truth + noise * rng.standard_normal((count, *truth.shape))
    scale, shift = rng.uniform(0.3, 3, (count, 1, 1)), rng.uniform(-1, 1, (count, 1, 1))
    return (noisy * scale + shift).astype(np.float32)


@pytest.mark.parametrize("reduction", ["median", "mean"])
def test_affine_copies_of_one_map_give_that_map_and_no_uncertainty(truth, reduction):
    merged, uncertainty = ensemble_maps(distorted(truth, 4), reduction)
    np.testing.assert_allclose(merged, truth, atol=2e-3)
    assert uncertainty.max() < 2e-3
    assert merged.dtype == uncertainty.dtype == np.float32


def test_noise_falls_with_the_number_of_members(truth):
    maps = distorted(truth, 9, noise=0.05)
    fitted = []
    for member in (maps[0], ensemble_maps(maps).merged):
        design = np.stack([member.ravel(), np.ones(member.size)], axis=1)
        fitted.append(np.abs(design @ np.linalg.lstsq(design, truth.ravel(), rcond=None)[0] - truth.ravel()).mean())
    assert fitted[1] < 0.6 * fitted[0]


def test_an_outlier_spoils_the_mean_and_not_the_median_and_shows_in_the_uncertainty(truth):
    maps = distorted(truth, 5, noise=0.002)
    maps[2, 10:20, 10:20] += 2.0
    median, mean = ensemble_maps(maps, "median"), ensemble_maps(maps, "mean")
    spoilt = (slice(10, 20), slice(10, 20))
    assert np.abs(median.merged - truth)[spoilt].mean() < 0.02
    assert np.abs(mean.merged - truth)[spoilt].mean() > 0.05
    outside = np.ones(truth.shape, bool)
    outside[spoilt] = False
    assert mean.uncertainty[spoilt].mean() > 5 * mean.uncertainty[outside].mean()


def test_the_alignment_minimises_the_differences_of_all_pairs_at_a_given_spread(truth):
    # members of unequal quality: bringing all to one spread is not the best then
    members = [distorted(truth, 1, noise, seed) for seed, noise in enumerate((0.02, 0.1, 0.3, 0.6))]
    maps = np.concatenate(members).reshape(4, -1).astype(np.float64)

    def cost(scale, shift):
        aligned = maps * scale[:, None] + shift[:, None]
        pairs = itertools.combinations(aligned, 2)
        return sum(np.mean((one - other) ** 2) for one, other in pairs) / aligned.mean(axis=0).var()

    scale, shift = align_to_consensus(maps, "mean")
    unit = 1 / np.ptp(maps, axis=1)
    assert cost(scale, shift) < cost(unit, -unit * maps.min(axis=1))
    rng = np.random.default_rng(0)
    around = [(1 + 0.02 * rng.standard_normal(4), 0.02 * rng.standard_normal(4)) for _ in range(50)]
    assert min(cost(scale * factor, shift + step) for factor, step in around) > cost(scale, shift)


def test_an_estimate_that_goes_against_the_others_is_left_out(truth):
    maps = np.stack([truth, truth * 2 + 1, 1 - truth, truth * 0.5])
    np.testing.assert_allclose(ensemble_maps(maps, "mean").merged, truth, atol=1e-4)
    scale, _ = align_to_consensus(maps.reshape(4, -1).astype(np.float64), "mean")
    assert scale[2] == 0
    assert (np.delete(scale, 2) > 0).all()


def test_one_estimate_is_brought_to_the_unit_range_and_a_flat_one_stays_flat(truth):
    merged, uncertainty = ensemble_maps((truth * 4 + 2)[None])
    np.testing.assert_allclose(merged, truth, atol=1e-5)
    assert not uncertainty.any()
    assert not ensemble_maps(np.full((2, 8, 8), 3.0, np.float32)).merged.any()


def test_a_large_map_is_aligned_on_fewer_pixels_and_merged_at_its_own_size(truth, monkeypatch):
    monkeypatch.setattr("jointdit.evaluation.ensemble.MAX_RESOLUTION", 16)
    merged, _ = ensemble_maps(distorted(truth, 3))
    assert merged.shape == truth.shape
    np.testing.assert_allclose(merged, truth, atol=5e-3)


@pytest.mark.parametrize(
    ("maps", "reduction", "message"),
    [
        (np.ones((4, 4), np.float32), "median", "maps have shape"),
        (np.ones((2, 4, 4), np.float32), "mode", "reduction is 'mode'"),
        (np.full((2, 4, 4), np.nan, np.float32), "median", "NaN or infinite"),
    ],
)
def test_what_cannot_be_merged(maps, reduction, message):
    with pytest.raises(InputError, match=message):
        ensemble_maps(maps, reduction)
