"""The same job on Ray Data, beside ours.

Ray Data's side: `map_batches` with an actor pool, encoding tasks, Parquet output. Both sides read the same Parquet
files (one per shard), run the same batches on one warm worker with one thread, compute the same scores, write the same
PNG images, and use the other cores for the rest. Ray Data has no row accounting, no quarantine, no commits and no
resume here. A block holds a shard's rows, so that reading, generating and encoding overlap. Both clocks run from the
warm model to the last file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.tools.bench.frame import Line, Reach, Settings, Turn, alternate
from jobs.tools.bench.local_runs import in_environment
from jobs.tools.bench.pipeline import busy_rates, describe_profile, sized_job
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
TURN_SECONDS = 24.0  # without loading the model


class Model:
    """The model in an actor of Ray Data."""

    def __init__(self, job: TinyJob, output: str) -> None:
        self.job, self.pipe = job, load_alone()
        warm(self.pipe, job.settings, job.batch_size)
        note_ready(output)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        seeds = [seed_of(identifier) for identifier in batch["id"]]
        out = self.pipe(prompt=list(batch["prompt"]), seeds=seeds, **self.job.settings)
        return {**batch, "rgb": out.rgb, "disparity": out.disparity}


def encode(batch: dict[str, Any]) -> dict[str, Any]:
    """Compute scores and encode images as PNG."""
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
    """Run the job on Ray Data."""
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
    """Yield the ratio of the engine to Ray Data."""
    with in_environment(**THREADS):
        job = sized_job(settings, load_alone(), TURN_SECONDS)
        job.write_input()
        numbers, profiles = itertools.count(), []

        def ours() -> Turn:
            turn, summary = run_engine(job, f"engine-{next(numbers)}")
            profiles.append(summary.profile or {})
            return turn

        def theirs() -> Turn:
            return run_ray_data(job, f"ray-data-{next(numbers)}")

        pairs = 1 if settings.quick else PAIRS
        turns = alternate(ours, theirs, pairs=pairs, seconds=settings.seconds, warm_up=False)
    limit = busy_rates(job, profiles, turns)
    notes = [
        f"without any wait between our worker's calls the ratio would be {limit.median:.3f}; the model limits the rest",
        describe_profile(profiles[-1]),
    ]
    yield turns.line("one worker, to the last file", "rows/s", Reach("at least", 1.25), notes)
