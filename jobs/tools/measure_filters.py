"""Recall and false alarms of all filters: `python -m jobs.tools.measure_filters`.

Plants faults in rendered scenes with exact depth, and writes the tables and the image of pipelines/quality/README.md.
--model adds self-consistency on swapped depth maps, and what the filters reject of a checkpoint's samples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

from jobs.report import console, say
from jobs.tools.filtering.faults import pair_of
from jobs.tools.filtering.recall import Measured, Samples, measure_scenes, result_of, tested
from jobs.tools.filtering.tables import (
    README,
    alarm_table,
    percent,
    recall_table,
    save_sheet,
    threshold_table,
    write_section,
)
from jobs.tools.measure_scores import as_results, make_joint_samples, separate_pairs
from jointdit.evaluation.scenes import held_out_scenes
from jointdit.scenes import render_scene
from jointdit.scenes.sampling import HELD_OUT_SEED
from pipelines.quality import measure
from pipelines.quality.self_consistency import SelfConsistency

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline

FIRST_SEED = HELD_OUT_SEED + 1_000_000  # scenes outside training and evaluation


def measure_filters(
    count: Annotated[
        int, typer.Option("-n", "--count", min=4, help="Number of scenes, half of them for calibration.")
    ] = 1000,
    size: Annotated[int, typer.Option(min=32, help="Side of an image in pixels.")] = 128,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint to measure too: tiny, a folder or a hub name.")
    ] = None,
    made: Annotated[int, typer.Option(min=8, help="Number of samples that the model generates.")] = 48,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps of these samples.")] = 20,
    readme: Annotated[Path, typer.Option(help="The Markdown file to write; rejects.png goes beside it.")] = README,
) -> None:
    """Measure recall and false alarms of all filters and write them to the README."""
    started = time.monotonic()
    samples: Samples = {}
    scenes = measure_scenes(FIRST_SEED, count, size, samples)
    for _ in track(scenes, total=count, console=console, transient=True, disable=not console.is_terminal):
        pass
    command = f"python -m jobs.tools.measure_filters -n {count} --size {size}"
    rows, generated = [], None
    if model is not None:
        from pipelines.model.loading import load_pipeline
        from pipelines.spec.job import ModelSpec

        pipe = load_pipeline(ModelSpec(name=model), "cpu")
        rows, generated = [swapped_row(pipe, made)], generated_by(pipe, made, steps)
        command += f" --model {model} --made {made} --steps {steps}"
    text = report(samples, command, rows, generated)
    write_section(readme, "measured", text)
    sheet = save_sheet(readme.with_name("rejects.png"), FIRST_SEED, size)
    for line in text.splitlines():
        say(line)
    say(f"{readme} and {sheet.name}, in {time.monotonic() - started:.0f} s")


def report(samples: Samples, command: str, rows: Sequence[Sequence[str]] = (), generated: Samples | None = None) -> str:
    """Return all tables in Markdown; `rows` and `generated` come from a checkpoint."""
    scenes = next(iter(samples.values()))
    count, half = len(scenes), len(tested(scenes))
    costs = ", ".join(f"{seconds_per_sample(side) * 1e3:.1f} ms at {side} x {side} pixels" for side in (128, 512))
    parts = [
        f"Measured by `{command}`. Of {count} scenes, {half} give the rates, at the filters' defaults; the "
        f"other {count - half}, by which the defaults were chosen, give the last table. Each scene has its own random "
        "faults.",
        recall_table(samples, rows),
        "False alarms, the rejected shares of clean samples, with the same scenes in several styles:",
        alarm_table(samples, generated),
        "Scores on the calibration half; each default lies between those of clean and of faulty samples:",
        threshold_table(samples),
        f"All scores of a sample together take {costs}, on one core.",
    ]
    return "\n\n".join(part.strip() for part in parts)


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


def seconds_per_sample(size: int, scenes: int = 5) -> float:
    """Return the CPU time of all scores of one sample, the minimum over several scenes."""
    results = [result_of(pair_of(render_scene(FIRST_SEED + number, size, size))) for number in range(scenes)]
    times = []
    for result in results:
        started = time.process_time()
        measure(result)
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    typer.run(measure_filters)
