"""How well each filter finds the faults it is made for: written by `python -m jobs.tools.measure_filters`.

Faults are planted in rendered scenes, whose depth is exact; the tables and the image of pipelines/quality/README.md
are made anew. With --model a checkpoint joins: self-consistency on swapped maps, and what the filters reject of what it
makes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from jobs.report import console, say
from jobs.tools.filtering.faults import pair_of
from jobs.tools.filtering.recall import Samples, measure_scenes, result_of, tested
from jobs.tools.filtering.tables import (
    alarm_table,
    recall_table,
    save_sheet,
    threshold_table,
    write_between_markers,
)
from jointdit.scenes import render_scene
from jointdit.scenes.sampling import HELD_OUT_SEED
from pipelines.quality import measure

FIRST_SEED = HELD_OUT_SEED + 1_000_000  # scenes of neither training nor evaluation
README = Path(__file__).parents[2] / "pipelines" / "quality" / "README.md"


def measure_filters(
    count: Annotated[int, typer.Option("-n", "--count", min=4, help="Scenes, half of them for calibration.")] = 1000,
    size: Annotated[int, typer.Option(min=32, help="Pixels a side.")] = 128,
    model: Annotated[str | None, typer.Option(help="Also: tiny, a checkpoint folder or a hub name.")] = None,
    made: Annotated[int, typer.Option(min=8, help="Samples of the model.")] = 48,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the model's samples.")] = 20,
    readme: Annotated[
        Path, typer.Option(help="The Markdown file with the markers; rejects.png lies beside it.")
    ] = README,
) -> None:
    """Measure recall and false alarms of all filters and write them into the documentation."""
    started = time.monotonic()
    samples: Samples = {}
    scenes = measure_scenes(FIRST_SEED, count, size, samples)
    for _ in track(scenes, total=count, console=console, transient=True, disable=not console.is_terminal):
        pass
    command = f"python -m jobs.tools.measure_filters -n {count} --size {size}"
    rows, others = [], None
    if model is not None:
        from jobs.tools.filtering.checkpoint import made_by, swapped_row
        from pipelines.model.loading import load_pipeline
        from pipelines.spec.job import ModelSpec

        pipe = load_pipeline(ModelSpec(name=model), "cpu")
        rows, others = [swapped_row(pipe, made)], made_by(pipe, made, steps)
        command += f" --model {model} --made {made} --steps {steps}"
    text = report(samples, command, rows, others)
    write_between_markers(readme, text)
    sheet = save_sheet(readme.with_name("rejects.png"), FIRST_SEED, size)
    for line in text.splitlines():
        say(line)
    say(f"{readme} and {sheet.name}, in {time.monotonic() - started:.0f} s")


def report(samples: Samples, command: str, rows: Sequence[Sequence[str]] = (), made: Samples | None = None) -> str:
    """All tables in Markdown; `rows` and `made` come from a checkpoint."""
    whole = len(next(iter(samples.values())))
    half = len(tested(next(iter(samples.values()))))
    costs = ", ".join(f"{seconds_a_sample(side) * 1e3:.1f} ms at {side} x {side} pixels" for side in (128, 512))
    parts = [
        f"Measured by `{command}`. Of {whole} scenes, {half} give the rates, at the filters' defaults; the other "
        f"{whole - half}, by which the defaults were chosen, give the last table. Each scene draws its own faults.",
        recall_table(samples, rows),
        "What is rejected of clean samples, the same scenes drawn in several hands, is a false alarm:",
        alarm_table(samples, made),
        "Where the scores lie on the calibration half; each default is between the two:",
        threshold_table(samples),
        f"All scores of a sample together cost {costs}, of one core.",
    ]
    return "\n\n".join(part.strip() for part in parts)


def seconds_a_sample(size: int, scenes: int = 5) -> float:
    """Processor time of all scores of one sample: the least of several scenes."""
    results = [result_of(pair_of(render_scene(FIRST_SEED + number, size, size))) for number in range(scenes)]
    times = []
    for result in results:
        started = time.process_time()
        measure(result)
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    typer.run(measure_filters)
