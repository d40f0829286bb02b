"""The same job on Ray Data, beside ours: `map_batches` with an actor pool for the model, tasks that encode, Parquet.

Both read the same Parquet files (one a shard), run the same batches on one warm worker with one thread, measure the
same scores, write the same PNG images, and have the machine's other cores for the rest. Ray Data's side has no row
accounting, no quarantine, no commit and no resume. Blocks are a shard's rows, so that reading, generating and encoding
overlap; the clock of both runs from the warm model to the last file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, Turn, alternate
from jobs.tools.bench.local_runs import in_environment
from jobs.tools.bench.pipeline import busy_seconds, sized_job, told
from jobs.tools.bench.tiny_job import (
    THREADS,
    TinyJob,
    load_alone,
    note_ready,
    ready_at,
    run_engine,
    seed_of,
    warm,
    work_of,
)
from jointdit.geometry.depth import encode_depth_png
from pipelines.engine.cluster import connect
from pipelines.quality import measure as scores_of
from pipelines.records import Row, Sample, SampleResult
from pipelines.stages.sinks.parquet import encode_image

PAIRS = 2
TURN_SECONDS = 24.0  # of the model: loading it takes each side some six more, before its clock


class Model:
    """What Ray Data keeps in an actor."""

    def __init__(self, job: TinyJob, output: str) -> None:
        self.job, self.pipe = job, load_alone()
        warm(self.pipe, job.settings, job.batch_size)
        note_ready(output)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        seeds = [seed_of(identifier) for identifier in batch["id"]]
        out = self.pipe(prompt=list(batch["prompt"]), seeds=seeds, **self.job.settings)
        return {**batch, "rgb": out.rgb, "disparity": out.disparity}


def encode(batch: dict[str, Any]) -> dict[str, Any]:
    """Scores, and images as PNG."""
    columns: dict[str, list[Any]] = {"id": [], "prompt": [], "rgb": [], "depth": [], "quality": []}
    for identifier, prompt, rgb, disparity in zip(*(batch[name] for name in batch), strict=True):
        sample = Sample(identifier, Row(identifier, "", 0, prompt=prompt), 0, 0, 0)
        columns["id"].append(identifier)
        columns["prompt"].append(prompt)
        columns["rgb"].append({"bytes": encode_image(rgb, "png")})
        columns["depth"].append({"bytes": encode_depth_png(disparity)})
        columns["quality"].append(scores_of(SampleResult(sample, rgb=rgb, disparity=disparity)))
    return {name: np.array(values, dtype=object) for name, values in columns.items()}


def run_ray_data(job: TinyJob, name: str) -> Turn:
    """The job through Ray Data."""
    output = str(job.folder / name / "out")
    with connect():
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        data = ray.data.read_parquet(str(job.folder / "in"), override_num_blocks=-(-job.rows // job.shard_rows))
        data = data.map_batches(
            Model,
            fn_constructor_args=(job, output),
            batch_size=job.batch_size,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        )
        data.map_batches(encode, batch_size=job.batch_size, num_cpus=0.25).write_parquet(output)
    files = sorted(Path(output).glob("*.parquet"))
    seconds = max(path.stat().st_mtime for path in files) - ready_at(output)
    return Turn(job.rows / seconds, work_of(pq.read_table(path) for path in files))


def measure(settings: Settings) -> Iterator[Line]:
    """The engine over Ray Data."""
    with in_environment(**THREADS):
        job = sized_job(settings, load_alone(), TURN_SECONDS)
        job.write_input()
        numbers, profiles = itertools.count(), []

        def ours() -> Turn:
            turn, summary = run_engine(job, f"engine-{next(numbers)}")
            profiles.append(summary.profile or {})
            return turn

        def theirs() -> Turn:
            turn = run_ray_data(job, f"ray-data-{next(numbers)}")
            return Turn(turn.value, {**turn.work})

        pairs = 1 if settings.quick else PAIRS
        found = alternate(ours, theirs, pairs=pairs, seconds=settings.seconds, warm_up=False)
    pairs_of = zip(profiles, found.theirs, strict=True)
    most = Spread.of([job.rows / busy_seconds(each) / turn.value for each, turn in pairs_of])
    notes = [
        f"without any wait between our worker's calls the ratio were {most.median:.3f}: more can only the model give",
        told(profiles[-1]),
    ]
    yield found.line("one worker, to the last file", "rows/s", Reach("at least", 1.25), notes)
