"""Self-consistency separates right from swapped pairs on the packaged checkpoint; tables and sections."""

import numpy as np
import pytest

from jobs.tools.filtering.tables import write_section
from jobs.tools.measure_scores import as_results, between, make_joint_samples, separate_pairs, separation_table
from jobs.tools.scoring.separation import (
    Separation,
    calibrated,
    columns,
    rates_table,
    rejected_share,
    roc_auc,
)
from jointdit.evaluation.scenes import held_out_scenes
from pipelines.model.loading import load_pipeline
from pipelines.quality.metric_fit import MetricFit
from pipelines.quality.self_consistency import SelfConsistency
from pipelines.spec.job import ModelSpec


@pytest.mark.slow
def test_self_consistency_separates_right_from_swapped_pairs_on_the_tiny_model():
    pipe = load_pipeline(ModelSpec(), "cpu")
    rule = SelfConsistency(steps=2)
    made, making = make_joint_samples(pipe, 6, 5)
    generated, scoring = separate_pairs(rule, pipe, made)
    exact, _ = separate_pairs(rule, pipe, as_results(held_out_scenes(6)))
    assert generated.swapped.auc("self_consistency_correlation") > 0.7  # six samples of five steps; chance is 0.5
    assert exact.swapped.auc("self_consistency_correlation") > 0.85
    assert exact.swapped.auc("self_consistency_abs_rel") > 0.7
    assert exact.inverted.auc("self_consistency_correlation") > 0.85
    assert 0 < scoring < making


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    assert roc_auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert roc_auc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_the_table_of_rejected_shares_is_written_between_its_markers(tmp_path):
    names = SelfConsistency.scores
    right = dict(zip(names, (np.array([0.1, 0.2]), np.array([0.9, 0.8]), np.array([0.9, 0.8])), strict=True))
    wrong = dict(zip(names, (np.array([0.15, 9.0]), np.array([0.85, 0.1]), np.array([0.7, 0.85])), strict=True))
    table = separation_table(SelfConsistency(), [("wrong", Separation(right, wrong))])
    assert "| self_consistency_abs_rel | wrong | 0.750 | 0.0 % | 50.0 % |" in table
    assert "| self_consistency_correlation | wrong | 0.750 | 0.0 % | 50.0 % |" in table
    path = tmp_path / "README.md"
    path.write_text("# Filters\n\nbefore\n")
    write_section(path, "scores", table)
    write_section(path, "scores", "again")
    assert path.read_text() == "# Filters\n\nbefore\n\n<!-- scores: begin -->\n\nagain\n\n<!-- scores: end -->\n"


def test_a_sample_without_a_score_is_rejected_and_calibration_rejects_its_fraction():
    rule = MetricFit()
    right = columns(
        [{"calibration_residual": n / 1000, "calibration_inlier_ratio": 1.0} for n in range(101)], rule.scores
    )
    wrong = columns([{"calibration_inlier_ratio": 0.0}] * 3, rule.scores)
    assert Separation(right, wrong).auc("calibration_residual") == 1
    assert Separation(right, wrong).rejected(rule) == (0, 1)
    tuned = calibrated(rule, right, 0.1)
    assert tuned.max_residual == pytest.approx(0.09)
    assert rejected_share(tuned, right) == pytest.approx(10 / 101)
    table = rates_table(rule, {"as rendered": right}, {"swapped depth": wrong}, tuned)
    assert "| *clean, as rendered* | 101 |  | 0.0 % | 9.9 % |" in table
    assert "| swapped depth | 3 | 1.000, calibration_residual | 100.0 % | 100.0 % |" in table
    assert "Calibrated: max_residual 0.09, min_inlier_ratio 1." in table


def test_a_default_is_described_with_the_scores_around_it():
    lows = {"pure noise": 0.2, "tiles in disorder": 0.3}
    clean = {"as rendered": {"ensemble_correlation": np.linspace(0.5, 1, 51)}}
    faulty = {name: {"ensemble_correlation": np.linspace(low, low + 0.2, 21)} for name, low in lows.items()}
    text = between(clean, faulty)
    assert "2.0 % of clean images lie below 0.510 (as rendered); " in text
    assert "95.0 % of unreadable images lie below 0.390 (pure noise), 0.490 (tiles in disorder); " in text
