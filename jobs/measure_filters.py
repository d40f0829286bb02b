"""How well each filter finds the faults it is made for: `python -m jobs.measure_filters` writes its own documentation.

Faults are planted in rendered scenes, whose depth is exact; the tables and the picture of pipelines/quality/README.md
are made anew. With --model a checkpoint joins: self-consistency on swapped maps, and what the filters reject of what it
makes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from jobs.filtering.faults import pair_of
from jobs.filtering.recall import Samples, measure_scenes, result_of
from jobs.filtering.tables import alarm_table, recall_table, save_sheet, threshold_table, write_between_markers
from jobs.report import console, say
from jointdit.scenes import render_scene
from jointdit.training.data import HELD_OUT_SEED
from pipelines.quality import measure

FIRST_SEED = HELD_OUT_SEED + 1_000_000  # scenes of neither training nor evaluation
README = Path(__file__).parents[1] / "pipelines" / "quality" / "README.md"


def measure_filters(
    count: Annotated[int, typer.Option("-n", "--count", min=4, help="Scenes, half of them for calibration.")] = 600,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side.")] = 128,
    readme: Annotated[
        Path, typer.Option(help="The Markdown file with the markers; rejects.png lies beside it.")
    ] = README,
) -> None:
    """Measure recall and false alarms of all filters and write them into the documentation."""
    started = time.monotonic()
    samples: Samples = {}
    steps = measure_scenes(FIRST_SEED, count, size, samples)
    for _ in track(steps, total=count, console=console, transient=True, disable=not console.is_terminal):
        pass
    costs = ", ".join(f"{seconds_a_sample(side) * 1e3:.1f} ms at {side} x {side}" for side in (128, 512))
    parts = [
        f"Measured on {count // 2} of {count} scenes of {size} x {size} pixels by `python -m jobs.measure_filters "
        f"-n {count} --size {size}`. The other {count - count // 2} are for calibration.",
        recall_table(samples),
        alarm_table(samples),
        "Where the scores lie on the calibration half:",
        threshold_table(samples),
        f"All scores together cost {costs}, of one core.",
    ]
    write_between_markers(readme, "\n\n".join(part.strip() for part in parts))
    sheet = save_sheet(readme.with_name("rejects.png"), FIRST_SEED, size)
    for line in "\n\n".join(parts).splitlines():
        say(line)
    say(f"{readme} and {sheet.name}, in {time.monotonic() - started:.0f} s")


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
