"""Self-consistency tells right from swapped pairs on the packaged checkpoint, few samples and few steps."""

import numpy as np
import pytest

from jobs.measure_scores import (
    Separation,
    as_results,
    make_joint_samples,
    roc_auc,
    separate_pairs,
    separation_table,
    write_section,
)
from jointdit.evaluation.scenes import held_out_scenes
from pipelines.model import load_pipeline
from pipelines.quality.self_consistency import SelfConsistency
from pipelines.spec import ModelSpec


@pytest.mark.timeout(300)
def test_self_consistency_separates_right_from_swapped_pairs_on_the_tiny_model():
    pipe = load_pipeline(ModelSpec(), "cpu")
    rule = SelfConsistency(steps=2)
    made, making = make_joint_samples(pipe, 6, 5)
    generated, scoring = separate_pairs(rule, pipe, made)
    exact, _ = separate_pairs(rule, pipe, as_results(held_out_scenes(6)))
    assert generated.swapped.auc("self_consistency_correlation") > 0.7  # six samples of five steps; 0.5 says nothing
    assert exact.swapped.auc("self_consistency_correlation") > 0.85
    assert exact.swapped.auc("self_consistency_abs_rel") > 0.7
    assert exact.inverted.auc("self_consistency_correlation") > 0.85
    assert 0 < scoring < making


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    assert roc_auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert roc_auc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_the_table_says_what_the_filter_rejects_at_its_defaults_and_is_written_between_its_markers(tmp_path):
    names = SelfConsistency.scores
    right = dict(zip(names, (np.array([0.1, 0.2]), np.array([0.9, 0.8]), np.array([0.9, 0.8])), strict=True))
    wrong = dict(zip(names, (np.array([0.15, 9.0]), np.array([0.85, 0.1]), np.array([0.7, 0.85])), strict=True))
    table = separation_table([("s", "right", "wrong", Separation(right, wrong))], {"s": SelfConsistency()})
    assert "| self_consistency_abs_rel | right | wrong | 0.750 | 0% | 50% |" in table
    assert "| self_consistency_correlation | right | wrong | 0.750 | 0% | 50% |" in table
    path = tmp_path / "README.md"
    path.write_text("# Filters\n\nbefore\n")
    write_section(path, table)
    write_section(path, "again")
    assert path.read_text() == (
        "# Filters\n\nbefore\n\n## Scores that cost a model\n\n"
        "<!-- scores: begin -->\n\nagain\n\n<!-- scores: end -->\n"
    )
