"""Filters keep clean samples and reject faulty ones for the right reason; specs are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jointdit.errors import SpecError
from pipelines.quality import FILTERS, PIXEL_FILTERS, SCORES, decide, load_filters, measure
from pipelines.records import Row, Sample, SampleResult

ALL = load_filters([{"kind": kind} for kind in PIXEL_FILTERS])
CAPTION = "a red ball on a gray floor"
WAVES = 0.05 * np.sin(np.linspace(0, 5, 64, dtype=np.float32))
BALL = np.hypot(*np.mgrid[-34:30, -30:34]) < 14


def scene() -> np.ndarray:
    """A disparity map: a floor that rises to the right, and a ball before it."""
    floor = np.linspace(0.02, 0.78, 64, dtype=np.float32)[:, None] + WAVES[None]
    return np.where(BALL, 0.9 + WAVES[:, None] + WAVES[None], floor).astype(np.float32)


def image() -> np.ndarray:
    """What belongs to it: a red ball on gray, shaded."""
    shade = np.linspace(150, 90, 64)[:, None, None]
    return np.where(BALL[..., None], (210, 40, 40), shade).astype(np.uint8).repeat(1, axis=2)


DEPTH, IMAGE = scene(), image()


def sample(disparity: np.ndarray = DEPTH, rgb: np.ndarray = IMAGE, caption: str | None = CAPTION) -> SampleResult:
    row = Row("a", "in.txt", 0, prompt=caption)
    return SampleResult(Sample("a/0", row, 0, 0, 1), rgb=rgb, disparity=disparity)


def kinds_against(spoilt: SampleResult) -> list[str]:
    """The filters that reject it."""
    reasons = decide(ALL, measure(spoilt), spoilt.sample.row.prompt)
    return [reason.split(":")[0] for reason in reasons]


def speckled() -> np.ndarray:
    flat = np.full((64, 64), 0.5, np.float32)
    flat[0, :10], flat[1, :10] = 0.0, 1.0
    return flat


def broken(count: int, value: float = np.nan) -> np.ndarray:
    disparity = DEPTH.copy()
    disparity.ravel()[:count] = value
    return disparity


def with_noise(deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, IMAGE.shape)
    return np.clip(IMAGE + noise, 0, 255).astype(np.uint8)


def salted(count: int) -> np.ndarray:
    disparity = DEPTH.copy()
    disparity.ravel()[:: disparity.size // count] = 1.0
    return disparity


def averaged(values: np.ndarray, width: int) -> np.ndarray:
    """Box means, so that jumps become ramps `width` pixels wide."""
    for axis in (0, 1):
        values = np.apply_along_axis(
            np.convolve, axis, np.pad(values, width, mode="edge"), np.ones(width) / width, "same"
        )
        values = values[width:-width, width:-width]
    return values.astype(np.float32)


def test_a_clean_sample_passes_every_filter_at_its_defaults() -> None:
    assert kinds_against(sample()) == []


@pytest.mark.parametrize(
    ("spoilt", "kind"),
    [
        (sample(np.full((64, 64), 0.4, np.float32)), "depth_range"),
        (sample(0.5 + 0.05 * DEPTH), "depth_range"),
        (sample(speckled()), "depth_range"),
        (sample(np.where(np.arange(64)[:, None] < 61, 0.0, DEPTH).astype(np.float32)), "flat_depth"),
        (sample((DEPTH > 0.5).astype(np.float32)), "saturated"),
        (sample(np.minimum(DEPTH * 2, 1)), "saturated"),
        (sample(broken(1)), "saturated"),
        (sample(broken(1, np.inf)), "saturated"),
        (sample(rgb=np.full((64, 64, 3), 255, np.uint8)), "saturated"),
        (sample(rgb=np.zeros((64, 64, 3), np.uint8)), "saturated"),
        (sample(averaged(DEPTH, 5)), "flying_pixels"),
        (sample(salted(30)), "planarity"),
        (sample((DEPTH + with_noise(20)[..., 0] / 1000).astype(np.float32)), "planarity"),
        (sample((np.rint(DEPTH * 255) / 255).astype(np.float32)), "planarity"),
        (sample(1 - DEPTH), "upright"),
        (sample(np.roll(DEPTH, 7, axis=1)), "edge_alignment"),
        (sample(DEPTH[:, ::-1]), "edge_alignment"),
        (sample(rgb=np.full((64, 64, 3), 130, np.uint8)), "blank_picture"),
        (sample(rgb=with_noise(25)), "noisy_picture"),
        (sample(rgb=np.where(IMAGE > 100, 255, IMAGE)), "clipped_picture"),
        (sample(caption=""), "caption"),
        (sample(caption=None), "caption"),
        (sample(caption="12345 -- ??"), "caption"),
        (sample(caption="ball " * 500), "caption"),
    ],
)
def test_spoilt_samples_are_rejected_by_the_filter_made_for_them(spoilt: SampleResult, kind: str) -> None:
    assert kind in kinds_against(spoilt)


@pytest.mark.parametrize("caption", ["ein roter Ball", "красный шар", "赤いボール", "un ballon rouge à 2 mètres"])
def test_captions_of_any_language_pass(caption: str) -> None:
    assert kinds_against(sample(caption=caption)) == []


@pytest.mark.parametrize(
    ("caption", "is_banned"),
    [
        ("A Watermark on grey", True),
        ("stock-photo of a ball", True),
        ("a STOCK photo", True),
        ("watermarks", False),
        ("a photo of stock", False),
        ("", False),
    ],
)
def test_banned_words_are_found_whole_and_in_any_case(caption: str, is_banned: bool) -> None:
    (found,) = load_filters([{"kind": "caption", "min_words": 0, "min_characters": 0, "min_letters": 0.0} | BANNED])
    reasons = decide([found], measure(sample(caption=caption)), caption)
    assert len(reasons) == is_banned
    assert all(reason.startswith("caption: the caption says") for reason in reasons)


BANNED = {"banned": ["watermark", "stock photo", "stock-photo"]}


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 3), (16, 16), (17, 64), (40, 700), (1200, 900)])
def test_scores_exist_for_images_of_any_size(shape: tuple[int, int]) -> None:
    rows, columns = (np.linspace(0, 63, side).astype(int) for side in shape)
    scores = measure(sample(DEPTH[np.ix_(rows, columns)], IMAGE[np.ix_(rows, columns)]))
    assert set(scores) <= set(SCORES)
    if min(shape) >= 3:
        assert all(np.isfinite(value) and abs(value) < 3e38 for value in scores.values())


def test_a_map_of_nothing_but_nan_is_measured_and_rejected() -> None:
    assert "saturated" in kinds_against(sample(np.full((64, 64), np.nan, np.float32)))


def test_a_threshold_moves_the_decision_and_not_the_score() -> None:
    half = measure(sample(DEPTH * 0.5))
    (strict,) = load_filters([{"kind": "depth_range", "min_span": 0.6}])
    (lenient,) = load_filters([{"kind": "depth_range", "min_span": 0.2}])
    assert decide([lenient], half, CAPTION) == []
    assert decide([strict], half, CAPTION) == [f"depth_range: depth spans {half['depth_span']:.3f}, less than 0.6"]


def test_every_score_of_pixels_is_measured_whichever_filters_are_named() -> None:
    of_pixels = [score for found in PIXEL_FILTERS.values() for score in found.scores]
    assert list(measure(sample())) == of_pixels
    of_models = [score for kind in FILTERS.keys() - PIXEL_FILTERS.keys() for score in FILTERS[kind].scores]
    assert sorted(SCORES) == sorted([*of_pixels, *of_models])
    assert len(set(SCORES)) == len(SCORES)


def test_a_score_that_is_missing_is_a_reason_and_not_a_pass() -> None:
    scores: dict[str, float | None] = {**measure(sample()), "depth_span": None}
    assert decide(ALL, scores, CAPTION) == ["depth_range: depth_span was not computed"]


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ({"kind": "depth_rnage"}, ("quality.filters.0.kind", "did you mean depth_range?")),
        ({"kind": "beauty"}, ("'beauty'", "choose one of depth_range, flat_depth, ")),
        ({"min_span": 0.2}, ("quality.filters.0.kind is None",)),
        ({"kind": "depth_range", "minspan": 0.2}, ("quality.filters.0.minspan", "did you mean min_span?")),
        ({"kind": "depth_range", "min_span": "wide"}, ("quality.filters.0.min_span is 'wide'",)),
        ({"kind": "depth_range", "min_span": 7.0}, ("quality.filters.0.min_span is 7.0", "less than or equal to 1")),
        ({"kind": "edge_alignment", "min_alignement": 1}, ("did you mean min_alignment?",)),
        ({"kind": "flying_pixels", "max_flying": float("nan")}, ("quality.filters.0.max_flying is nan", "finite")),
        ({"kind": "upright", "min_correlation": -2.0}, ("quality.filters.0.min_correlation is -2.0", "-1")),
        ({"kind": "noisy_picture", "max_noise": -1.0}, ("quality.filters.0.max_noise is -1.0", "0")),
        ({"kind": "caption", "max_words": 0}, ("quality.filters.0.max_words is 0", "1")),
        ({"kind": "caption", "min_words": 1.5}, ("quality.filters.0.min_words is 1.5", "integer")),
        ({"kind": "caption", "banned": "watermark"}, ("quality.filters.0.banned is 'watermark'",)),
        ({"kind": "caption", "banned": [""]}, ("quality.filters.0.banned.0 is ''", "at least 1 character")),
    ],
)
def test_wrong_settings_are_one_sentence(setting: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        load_filters([setting])
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", sorted(FILTERS))
def test_each_threshold_has_its_reason(kind: str) -> None:
    """A score at its threshold is kept, one beyond it is rejected with both numbers, and NaN is never kept."""
    filter_ = FILTERS[kind](model="critic") if "model" in FILTERS[kind].model_fields else FILTERS[kind]()
    limits = filter_.limits()
    assert len(limits) == len(filter_.reasons)
    at_threshold = {limit.score: float(getattr(filter_, limit.field)) for limit in limits if limit.is_lower}
    at_threshold |= {limit.score: float(getattr(filter_, limit.field)) for limit in limits if not limit.is_lower}
    assert filter_.reject(at_threshold) is None
    for limit in limits:
        threshold = float(getattr(filter_, limit.field))
        for beyond in (threshold - 1 if limit.is_lower else threshold + 1, float("nan")):
            reason = filter_.reject({**at_threshold, limit.score: beyond})
            assert reason
            assert "than" in reason
