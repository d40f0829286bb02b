"""Filters on a checkpoint: self-consistency on swapped depth maps, and what they reject of its samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.tools.filtering.recall import Measured, Samples
from jobs.tools.filtering.tables import percent
from jobs.tools.measure_scores import as_results, make_joint_samples, separate_pairs
from jointdit.evaluation.scenes import held_out_scenes
from pipelines.quality import measure
from pipelines.quality.self_consistency import SelfConsistency

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline


def swapped_row(pipe: JointDiTPipeline, count: int) -> list[str]:
    """Return a row of the recall table: self-consistency on swapped depth maps of rendered scenes."""
    scenes = held_out_scenes(count, pipe.config.default_width, pipe.config.default_height)
    rule = SelfConsistency()
    pairs, _ = separate_pairs(rule, pipe, as_results(scenes))
    separation = pairs.swapped
    false, recall = separation.rejected(rule)
    best, auc = separation.best(rule)
    rates = f"{percent(recall)} at {percent(false)} false alarms; ROC AUC {auc:.3f} by {best}"
    return ["swapped depth", f"the maps of other scenes, {count} scenes", rule.kind, rates, ""]


def generated_by(pipe: JointDiTPipeline, count: int, steps: int) -> Samples:
    """Generate joint samples of held-out captions and score them; the key names their column."""
    results, _ = make_joint_samples(pipe, count, steps)
    return {
        f"{count} of the checkpoint": [Measured(measure(result), result.sample.row.prompt or "") for result in results]
    }
