"""A checkpoint beside the filters: its self-consistency on swapped maps, and what they reject of its samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.tools.filtering.recall import Measured, Samples
from jobs.tools.measure_scores import as_results, make_joint_samples, separate_pairs
from jointdit.evaluation.scenes import held_out_scenes
from pipelines.quality import measure
from pipelines.quality.self_consistency import SelfConsistency

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline


def swapped_row(pipe: JointDiTPipeline, count: int) -> list[str]:
    """A row of the recall table: swapped maps by self-consistency, on rendered scenes with exact depth."""
    scenes = held_out_scenes(count, pipe.config.default_width, pipe.config.default_height)
    rule = SelfConsistency()
    pairs, _ = separate_pairs(rule, pipe, as_results(scenes))
    separation = pairs.swapped
    false, recall = separation.rejected(rule)
    best = max(rule.scores, key=separation.auc)
    found = f"{recall:.1%} at {false:.1%} false alarms; ROC AUC {separation.auc(best):.3f} by {best}"
    return ["swapped depth", f"the maps of other scenes, {count} scenes", rule.kind, found.replace("%", " %"), ""]


def made_by(pipe: JointDiTPipeline, count: int, steps: int) -> Samples:
    """Joint samples of held-out captions, measured, under a name for their column."""
    results, _ = make_joint_samples(pipe, count, steps)
    return {f"{count} of the checkpoint": [Measured(measure(each), each.sample.row.prompt or "") for each in results]}
