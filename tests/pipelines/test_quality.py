"""Filters: clean samples pass, spoilt ones are rejected for the right reason, and a spec cannot name nonsense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jointdit.errors import SpecError
from pipelines.quality import FILTERS, PIXEL_FILTERS, SCORES, decide, load_filters, measure
from pipelines.records import Row, Sample, SampleResult

ALL = load_filters([{"kind": kind} for kind in PIXEL_FILTERS])
RAMP = np.linspace(0.02, 0.98, 64, dtype=np.float32)[:, None].repeat(64, 1)
PICTURE = np.random.default_rng(0).integers(20, 230, (64, 64, 3), dtype=np.uint8)


def sample(disparity: np.ndarray = RAMP, rgb: np.ndarray = PICTURE) -> SampleResult:
    return SampleResult(Sample("a/0", Row("a", "in.txt", 0), 0, 0, 1), rgb=rgb, disparity=disparity)


def speckled() -> np.ndarray:
    flat = np.full((64, 64), 0.5, np.float32)
    flat[0, :10], flat[1, :10] = 0.0, 1.0
    return flat


def broken(count: int) -> np.ndarray:
    disparity = RAMP.copy()
    disparity.ravel()[:count] = np.nan
    return disparity


def test_a_clean_sample_passes_every_filter_at_its_defaults() -> None:
    assert decide(ALL, measure(sample())) == []


@pytest.mark.parametrize(
    ("spoilt", "kind"),
    [
        (sample(np.full((64, 64), 0.4, np.float32)), "depth_range"),
        (sample(0.5 + 0.05 * RAMP), "depth_range"),
        (sample(speckled()), "depth_range"),
        (sample((RAMP > 0.5).astype(np.float32)), "saturated"),
        (sample(broken(1)), "saturated"),
        (sample(rgb=np.full((64, 64, 3), 255, np.uint8)), "saturated"),
        (sample(rgb=np.zeros((64, 64, 3), np.uint8)), "saturated"),
    ],
)
def test_spoilt_samples_are_rejected_by_the_filter_made_for_them(spoilt: SampleResult, kind: str) -> None:
    reasons = decide(ALL, measure(spoilt))
    assert kind in [reason.split(":")[0] for reason in reasons]


def test_a_threshold_moves_the_decision_and_not_the_score() -> None:
    half = measure(sample(RAMP * 0.5))
    (strict,) = load_filters([{"kind": "depth_range", "min_span": 0.6}])
    (lenient,) = load_filters([{"kind": "depth_range", "min_span": 0.2}])
    assert decide([lenient], half) == []
    assert decide([strict], half) == [f"depth_range: depth spans {half['depth_span']:.3f}, less than 0.6"]


def test_every_score_of_pixels_is_measured_whichever_filters_are_named() -> None:
    of_pixels = [score for found in PIXEL_FILTERS.values() for score in found.scores]
    assert list(measure(sample())) == of_pixels
    of_models = [score for kind in FILTERS.keys() - PIXEL_FILTERS.keys() for score in FILTERS[kind].scores]
    assert sorted(SCORES) == sorted([*of_pixels, *of_models])
    assert len(set(SCORES)) == len(SCORES)


def test_a_score_that_is_missing_is_a_reason_and_not_a_pass() -> None:
    scores: dict[str, float | None] = {**measure(sample()), "depth_span": None}
    assert decide(ALL, scores) == ["depth_range: depth_span was not computed"]


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ({"kind": "depth_rnage"}, ("quality.filters.0.kind", "did you mean depth_range?")),
        ({"kind": "beauty"}, ("'beauty'", "choose one of depth_range, saturated")),
        ({"min_span": 0.2}, ("quality.filters.0.kind is None",)),
        ({"kind": "depth_range", "minspan": 0.2}, ("quality.filters.0.minspan", "did you mean min_span?")),
        ({"kind": "depth_range", "min_span": "wide"}, ("quality.filters.0.min_span is 'wide'",)),
        ({"kind": "depth_range", "min_span": 7.0}, ("quality.filters.0.min_span is 7.0", "less than or equal to 1")),
    ],
)
def test_wrong_settings_are_one_sentence(setting: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        load_filters([setting])
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
