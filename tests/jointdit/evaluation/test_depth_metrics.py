"""Depth metrics against numbers from Marigold's own code, and what the golden cases leave out."""

import json
from pathlib import Path

import numpy as np
import pytest

from jointdit.errors import InputError
from jointdit.evaluation import depth_metrics
from jointdit.evaluation.alignment import fit_scale_shift
from jointdit.evaluation.metrics import clipped_depth

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = json.loads((GOLDEN / "depth_metrics.json").read_text())["cases"]
ARRAYS = np.load(GOLDEN / "depth_metrics.npz")
ALIGNMENT = {None: None, "least_square": "depth", "least_square_disparity": "disparity"}
NAMES = {
    "abs_rel": "abs_relative_difference",
    "sq_rel": "squared_relative_difference",
    "rmse": "rmse_linear",
    "rmse_log": "rmse_log",
    "log10": "log10",
    "delta1": "delta1_acc",
    "delta2": "delta2_acc",
    "delta3": "delta3_acc",
    "i_rmse": "i_rmse",
    "silog": "silog_rmse",
}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden_case(case):
    pred, gt, mask = (ARRAYS[f"{case['arrays']}.{name}"] for name in ("pred", "gt", "mask"))
    alignment = ALIGNMENT[case["alignment"]]
    protocol = {
        "min_depth": case["min_depth"],
        "max_depth": case["max_depth"],
        "max_resolution": case["max_resolution"],
    }

    aligned = clipped_depth(pred, gt, mask, alignment, **protocol)
    found = depth_metrics(pred, gt, mask, alignment, **protocol)

    assert aligned.dtype == np.float32
    np.testing.assert_allclose(aligned, ARRAYS[f"{case['name']}.aligned"], rtol=1e-5, atol=2e-5)
    assert found == pytest.approx(
        {ours: case["expected"][theirs] for ours, theirs in NAMES.items()}, rel=2e-5, abs=2e-5
    )


def test_the_golden_set_is_whole():
    assert len(CASES) == 15
    assert {case["alignment"] for case in CASES} == set(ALIGNMENT)


def test_alignment_below_full_resolution_fits_the_nearest_neighbours_torch_keeps():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    truth, pred = rng.uniform(1, 9, (2, 50, 75)).astype(np.float32)
    small = torch.nn.Upsample(scale_factor=32 / 75, mode="nearest")
    small_truth, small_pred = (small(torch.from_numpy(a)[None, None])[0, 0].numpy() for a in (truth, pred))

    fit = fit_scale_shift(pred, truth, np.ones(truth.shape, bool), max_resolution=32)

    assert fit == pytest.approx(fit_scale_shift(small_pred, small_truth, np.ones(small_truth.shape, bool)), rel=1e-6)
    assert fit != pytest.approx(fit_scale_shift(pred, truth, np.ones(truth.shape, bool)), rel=1e-3)


def test_a_perfect_relative_disparity_scores_zero_error_without_a_mask():
    gt = np.linspace(1, 8, 48, dtype=np.float32).reshape(6, 8)
    gt[0, 0] = np.nan
    disparity = np.nan_to_num((1 / gt) * 3 + 0.2).astype(np.float32)
    found = depth_metrics(disparity, gt, alignment="disparity")
    assert found["abs_rel"] < 1e-6
    assert found["delta1"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": np.ones((2, 3), np.float32)}, "one shape"),
        ({"mask": np.zeros((4, 4), bool)}, "mask is empty"),
        ({"pred": np.full((4, 4), np.nan, np.float32)}, "pred holds NaN"),
        ({"gt": np.full((4, 4), np.nan, np.float32)}, "gt holds NaN"),
        ({"alignment": "inverse"}, "alignment is 'inverse'"),
        ({"alignment": "disparity", "pred": np.zeros((4, 4), np.float32)}, "no pixel to align"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(change, message):
    ones = np.ones((4, 4), np.float32)
    with pytest.raises(InputError, match=message):
        depth_metrics(**({"pred": ones, "gt": ones, "mask": ones > 0} | change))
