"""Thresholds as quantiles: numbers by the time anything is decided, recorded with where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jointdit.errors import SpecError
from pipelines.dataset.refilter import refilter
from pipelines.quality import FILTERS
from pipelines.spec.job import JobSpec, load_spec
from pipelines.spec.quantiles import Calibration, value_of, without_quantiles
from pipelines.store.storage import Storage
from tests.local_job import input_folder

SCORES = {"depth_span": [0.0, 0.1, 0.2, 0.3, 0.4], "rgb_saturated_fraction": [0.1, 0.2]}


def calibrated(folder: Path, scores: dict[str, list[float]] = SCORES) -> str:
    Calibration(5, 0, scores, {}, "2026-01-01T00:00:00+00:00").write(Storage(str(folder)))
    return str(folder)


def spec_with(quality: dict, *overrides: str) -> JobSpec:
    return load_spec(
        {"task": "joint", "input": {"uri": "a.txt"}, "output": {"uri": "b"}, "quality": quality}, overrides
    )


KINDS = [kind for kind in FILTERS if FILTERS[kind].limits()]


@pytest.mark.parametrize("kind", KINDS)
def test_each_threshold_bounds_the_score_that_its_filter_rejects_by(kind: str) -> None:
    """A score beyond one threshold, all others at theirs: the filter rejects; at the threshold it keeps."""
    limits = FILTERS[kind].limits()
    assert {limit.score for limit in limits} == set(FILTERS[kind].scores), "each of its scores has a threshold"
    settings = {name: {} for name in ("model",) if name in FILTERS[kind].model_fields}
    given = {"model": "somewhere"} if settings else {}
    for limit in limits:
        found = FILTERS[kind](**given)
        bound = getattr(found, limit.field)
        scores = {each.score: getattr(found, each.field) for each in limits}
        scores[limit.score] = bound
        assert found.reject(scores) is None
        step = 1.0 if isinstance(bound, int) else 1e-3
        scores[limit.score] = bound - step if limit.is_lower else bound + step
        assert found.reject(scores), limit


def test_every_filter_with_scores_can_be_calibrated() -> None:
    assert set(KINDS) == {kind for kind, found in FILTERS.items() if found.scores}


def test_a_quantile_is_a_number_once_the_spec_is_read(tmp_path: Path) -> None:
    uri = calibrated(tmp_path)
    filters = [
        {"kind": "depth_range", "min_span": {"quantile": 0.25}},
        {"kind": "saturated", "max_rgb": {"quantile": 1}},
    ]
    spec = spec_with({"filters": filters, "calibration": uri})
    assert [dict(each) for each in spec.quality.filters] == [
        {"kind": "depth_range", "min_span": pytest.approx(0.1)},
        {"kind": "saturated", "max_rgb": pytest.approx(0.2)},
    ]
    first, second = spec.quality.calibrated
    assert (first["quantile"], first["value"], first["samples"]) == (0.25, pytest.approx(0.1), 5)
    assert (second["filter"], second["kind"], second["threshold"]) == (1, "saturated", "max_rgb")

    (tmp_path / "calibration.json").unlink()
    again = load_spec(spec.as_given())
    assert again == spec, "what is stored with a job needs the file no more"
    changed = load_spec(spec.as_given(), ["quality.filters.0.min_span=0.3"])
    assert [each["kind"] for each in changed.quality.calibrated] == ["saturated"], "it came from no quantile"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            {"min_span": {"quantile": 2}},
            r"filters.0.min_span must be a number, or \{quantile: 0.05\} with",
        ),
        ({"min_span": {"median": 1}}, r"filters.0.min_span must be a number, or"),
        ({"kind": "saturated", "max_depth": {"quantile": 0.9}}, "has no depth_saturated_fraction: name saturated in"),
        (
            {"kind": "near_duplicate", "max_distance": {"quantile": 0.9}},
            "thresholds of near_duplicate that can are none",
        ),
        ({"kind": "depth_rnge", "min_span": {"quantile": 0.9}}, "did you mean depth_range"),
    ],
)
def test_a_quantile_that_cannot_be_had_is_one_sentence(setting: dict, sentence: str, tmp_path: Path) -> None:
    uri = calibrated(tmp_path)
    with pytest.raises(SpecError, match=sentence):
        spec_with({"filters": [{"kind": "depth_range", **setting}], "calibration": uri})


def test_a_calibration_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    filters = [{"kind": "depth_range", "min_span": {"quantile": 0.1}}]
    with pytest.raises(SpecError, match=r"quality.calibration is missing: name a folder that `jointdit"):
        spec_with({"filters": filters})
    with pytest.raises(SpecError, match=r"has no calibration.json: create it with `jointdit calibrate`"):
        spec_with({"filters": filters, "calibration": str(tmp_path)})
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(SpecError, match=r"calibration.json is unreadable \(KeyError\): create it again"):
        spec_with({"filters": filters, "calibration": str(tmp_path)})
    sound = {"samples": 1, "quarantined": 0, "fingerprint": {}, "created": "now", "format": 1}
    for scores in (
        "3",
        "[0.1]",
        '{"depth_span": 0.1}',
        '{"depth_span": ["x"]}',
        '{"depth_span": [NaN]}',
        "[" * 100_000,
    ):
        (tmp_path / "calibration.json").write_text(f'{json.dumps(sound)[:-1]}, "scores": {scores}}}')
        with pytest.raises(SpecError, match=r"calibration.json is unreadable \(\w+Error\): create it again"):
            spec_with({"filters": filters, "calibration": str(tmp_path)})
    assert without_quantiles({"filters": filters, "calibration": "x"}) == {"filters": [{"kind": "depth_range"}]}


def test_whole_numbers_are_rounded_to_the_side_that_rejects_less() -> None:
    for kind, found in FILTERS.items():
        for limit in found.limits():
            value = value_of(found, limit, 3.4)
            if found.model_fields[limit.field].annotation is int:
                assert value == (3 if limit.is_lower else 4), kind
            else:
                assert value == 3.4


def test_a_calibration_that_is_made_anew_changes_no_decision_that_was_published(make_job, tmp_path: Path) -> None:
    quality = {"filters": [{"kind": "depth_range", "min_span": {"quantile": 0.5}}], "max_quarantined_fraction": 1.0}
    quality["calibration"] = calibrated(tmp_path / "calibration")
    folder = input_folder(tmp_path, a="a\nb\n")
    sections = {"quality": quality, "input": {"uri": str(folder)}}
    first = make_job(**sections).complete()
    assert first.criteria["filters"] == [{"kind": "depth_range", "min_span": 0.2}]
    assert first.counts["kept"] == 2
    calibrated(tmp_path / "calibration", {"depth_span": [0.9999, 0.9999]})
    (folder / "b.txt").write_text("c\n")
    job = make_job(**sections)
    second = job.complete()
    assert second.counts == {"kept": 2, "rejected": 1, "quarantined": 0}
    assert second.spec.quality.calibrated[0]["quantile"] == 0.5
    anew = refilter(job.context.storage.uri, ["quality.filters.0.min_span={quantile: 0.0}"])
    assert anew.version.counts["rejected"] == 3, "refilter decides the whole dataset by the number of today"
