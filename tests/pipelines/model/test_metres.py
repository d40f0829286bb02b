"""Metres by a metric depth model: real classes at small size, in the real worker, with the stand-in's images."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jointdit.errors import ModelError, SpecError
from jointdit.evaluation.transformers_depth import TransformersDepth
from jointdit.geometry.calibration import Calibration, fit_inverse_depth
from pipelines.model.identity import check_scorers
from pipelines.model.metric_depth import load_calibrator
from pipelines.quality.model_scored import ScoredBatch
from pipelines.records import Content, Row, Sample, SampleResult
from pipelines.spec.job import load_spec
from pipelines.spec.sections import CalibrateSpec
from pipelines.stages.sinks.geometry import geometry_of
from tests.small_models import save_depth_anything, save_dpt

RAMP = np.linspace(0, 1, 32 * 48, dtype=np.float32).reshape(32, 48)


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "metric"
    save_depth_anything(folder, depth_estimation_type="metric", max_depth=20)
    return folder


def spec_with(model: Path | str, **points: Any) -> Any:
    points = {"calibrate": {"model": str(model)}, **points}
    return load_spec({"task": "joint", "input": {"uri": "in"}, "output": {"uri": "out", "points": points}})


def result(content: Content | None = None) -> SampleResult:
    rgb = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    return SampleResult(Sample("a/0", Row("a", "in", 0), 0, 0, 1, content=content), rgb=rgb, disparity=RAMP)


class SaysDepth:
    """In place of a trained model's forward pass: what a good one would say of the ramp, and of nothing else."""

    def __init__(self, depth: np.ndarray, focal: float | None = None) -> None:
        self.depth, self.focal = depth, focal

    def __call__(self, model: TransformersDepth, image: np.ndarray) -> tuple[np.ndarray, float | None]:
        return self.depth[: image.shape[0], : image.shape[1]], self.focal


def calibrated(metric: Path, monkeypatch: pytest.MonkeyPatch, said: SaysDepth, made: SampleResult) -> dict[str, float]:
    calibrate = load_calibrator(CalibrateSpec(model=str(metric)), "cpu")
    monkeypatch.setattr(TransformersDepth, "estimate_metric", lambda model, image: said(model, image))
    (scores,) = calibrate(ScoredBatch([made], None, 1.0))
    return scores


def test_the_range_is_that_of_the_metric_map_without_padding(metric: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = (1 / (1 / 8 + (1 / 2 - 1 / 8) * RAMP)).astype(np.float32)
    depth[30:] = 1000.0  # under the padding the model may see anything
    made = result(Content(0, 0, 30, 48))
    scores = calibrated(metric, monkeypatch, SaysDepth(depth, focal=40.0), made)
    assert made.calibration is not None
    assert (made.calibration.z_near, made.calibration.z_far) == pytest.approx((2.0, 8.0), rel=1e-4)
    assert made.calibration.focal_pixels == 40.0
    assert scores == {"calibration_residual": pytest.approx(0, abs=1e-4), "calibration_inlier_ratio": 1.0}


def test_where_the_map_runs_the_other_way_there_is_no_fit(metric: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = result()
    scores = calibrated(metric, monkeypatch, SaysDepth((1 + RAMP).astype(np.float32)), made)
    assert made.calibration is None
    assert scores == {"calibration_inlier_ratio": 0.0}
    geometry = geometry_of(made, spec_with(metric))
    assert (geometry.z_near, geometry.z_far, geometry.range_source) == (1.0, 10.0, "assumed")


def test_a_calibrated_sample_says_so(metric: Path) -> None:
    made = result()
    made.calibration = Calibration(1.5, 12.0, 0.02, 0.9, focal_pixels=16.0)
    geometry = geometry_of(made, spec_with(metric))
    assert (geometry.z_near, geometry.z_far, geometry.range_source) == (1.5, 12.0, "calibrated")
    assert geometry.intrinsics.fy == pytest.approx(16.0)
    assert geometry.intrinsics_source == "calibrated"
    given = geometry_of(made, spec_with(metric, fov_degrees=90.0))
    assert (given.intrinsics.fy, given.intrinsics_source) == (pytest.approx(16.0), "given")
    made.calibration = replace(made.calibration, focal_pixels=None)
    assert geometry_of(made, spec_with(metric)).intrinsics_source == "assumed"


def test_a_jobs_rows_carry_range_scores_and_decision(make_job: Any, metric: Path) -> None:
    """Small random weights: their map of noise agrees with nothing, which the scores say."""
    lenient = {"kind": "metric_fit", "max_residual": 0.0}
    job = make_job(
        ["a", "b"],
        output={"points": {"format": "ply", "calibrate": {"model": str(metric)}}},
        quality={"filters": [lenient]},
    )
    version = job.complete()
    assert version.counts == {"kept": 0, "rejected": 2, "quarantined": 0}
    (path,) = version.files_of("rejected")
    for row in pq.read_table(io.BytesIO(job.context.storage.read_bytes(path))).to_pylist():
        ratio, residual = (row["quality"][f"calibration_{name}"] for name in ("inlier_ratio", "residual"))
        source = json.loads(row["params"])["range_source"]
        assert (source, ratio == 0.0) in (("calibrated", False), ("assumed", True))
        assert (residual is None) == (source == "assumed")
        if source == "calibrated":
            assert 0 < row["z_near"] < row["z_far"]
            assert json.loads(row["params"])["range_by"] == str(metric)


def test_the_model_is_the_real_one(metric: Path) -> None:
    made = result()
    (scores,) = load_calibrator(CalibrateSpec(model=str(metric)), "cpu")(ScoredBatch([made], None, 1.0))
    assert made.rgb is not None
    expected = fit_inverse_depth(RAMP, TransformersDepth(str(metric)).estimate(made.rgb))
    if expected is None:
        assert scores == {"calibration_inlier_ratio": 0.0}
    else:
        assert scores["calibration_residual"] == pytest.approx(expected.residual)
        assert made.calibration == expected


def test_what_cannot_calibrate_is_refused_before_the_run(tmp_path: Path, metric: Path) -> None:
    with pytest.raises(ModelError, match=r"output\.points\.calibrate: .* there is no such folder"):
        check_scorers(spec_with(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="gives relative depth: give a model of metric depth"):
        check_scorers(spec_with(save_dpt(tmp_path / "dpt")))
    assert check_scorers(spec_with(metric)) > 1000
    with pytest.raises(SpecError, match="calibrate determines the depth range: remove z_near and z_far"):
        spec_with(metric, z_near=2.0)
    output = {"uri": "o", "points": {"calibrate": {"model": "m"}}}
    maps = {"task": "depth-to-image", "input": {"uri": "in", "depth": {"kind": "metric"}}, "output": output}
    with pytest.raises(SpecError, match="maps are metric: remove it"):
        load_spec(maps)
    alone = {"task": "joint", "input": {"uri": "in"}, "output": {"uri": "o"}}
    with pytest.raises(SpecError, match=r"needs output\.points\.calibrate"):
        check_scorers(load_spec({**alone, "quality": {"filters": [{"kind": "metric_fit"}]}}))
