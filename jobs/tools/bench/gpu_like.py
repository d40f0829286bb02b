"""Whole jobs with a model that sleeps for a GPU's time, beside the same sleep alone.

The input is noisy images of 512 x 512 pixels in Parquet, the task is depth. Only the network is replaced: the job reads
and decodes rows, scores and encodes depth, writes and commits. Sleep takes no CPU time, so sixteen workers fit on a
small machine, whose CPUs serve them. The baseline is the same sleep in as many threads. Rows/s are summed over workers,
each from the start of its first call to the end of its last.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.tools.bench.finish import noisy_results
from jobs.tools.bench.frame import Line, Reach, Settings, Spread, Turn, check_same_work
from jobs.tools.bench.local_runs import in_environment, last_commit, spec_of
from jobs.tools.bench.pipeline import describe_profile
from jobs.tools.bench.tiny_job import THREADS
from pipelines.engine.cluster import connect
from pipelines.records import SampleResult
from pipelines.run.job import run_job
from pipelines.stages.generate import GenerationWorker, PartSummary
from pipelines.stages.sinks.parquet import encode_image

IMAGES = 16  # distinct images; the rows repeat them
REACH = {1: 0.97, 4: 0.97, 16: 0.95}  # workers -> least ratio to sleep alone
ROWS_PER_WORKER = {3.3: 5, 0.3: 24}  # seconds per row -> rows
SHARD_ROWS, IN_FLIGHT = 2, 2


class WaitingPipeline:
    """Called like JointDiTPipeline for task depth; sleeps for JOINTDIT_BENCH_SECONDS per row."""

    def __init__(self) -> None:
        self.seconds = float(os.environ["JOINTDIT_BENCH_SECONDS"])

    def __call__(self, *, seeds: list[int], image: list[NDArray[np.uint8]], **_: Any) -> SimpleNamespace:
        until = time.monotonic() + self.seconds * len(seeds)
        maps = np.stack([_depth_of(rgb, seed) for rgb, seed in zip(image, seeds, strict=True)])
        time.sleep(max(0.0, until - time.monotonic()))
        return SimpleNamespace(rgb=np.stack(image), disparity=maps, finite=np.ones(len(seeds), bool))


class WaitingWorker(GenerationWorker):
    """The engine's worker with the sleeping model; logs start and end of each call."""

    def set_up(self) -> str:
        """Set up the worker; the job's name holds the seconds per row."""
        os.environ["JOINTDIT_BENCH_SECONDS"] = self.context.spec.name.rpartition("-")[2]
        return super().set_up()

    def load(self) -> Any:
        """Return the sleeping model."""
        return WaitingPipeline()

    def generate(self, part: Any) -> tuple[list[SampleResult], PartSummary]:
        """Generate a part and append a line to the log of calls."""
        began = time.time()
        results, summary = super().generate(part)
        with Path(f"{self.context.storage.path('')}.calls").open("a") as file:
            file.write(json.dumps([os.getpid(), began, time.time(), len(part)]) + "\n")
        return results, summary


def measure(settings: Settings) -> Iterator[Line]:
    """Yield one line per speed and number of workers; the side that runs first alternates."""
    side = 64 if settings.quick else 512
    speeds = {0.2: 12} if settings.quick else ROWS_PER_WORKER
    counts = [1, 2] if settings.quick else list(REACH)
    results = (result for _, result in noisy_results(2 if settings.quick else IMAGES, side))
    images = [encode_image(result.rgb, "png") for result in results if result.rgb is not None]
    with in_environment(**THREADS), connect():
        order = itertools.cycle([True, False])
        for seconds, rows in speeds.items():
            for workers in counts:
                folder = settings.folder / f"{workers}-{seconds}"
                _write_corpus(folder / "in", images, workers * rows)
                if next(order):
                    ours, notes = _engine(folder, workers, seconds, workers * rows, side)
                    theirs = _sleep_alone(workers, seconds, workers * rows)
                else:
                    theirs = _sleep_alone(workers, seconds, workers * rows)
                    ours, notes = _engine(folder, workers, seconds, workers * rows, side)
                check_same_work(ours.work, theirs.work)
                name = f"{workers} worker{'s' if workers > 1 else ''}, {seconds:g} s a row"
                ratio = Spread.of([ours.value / theirs.value])
                rates = Spread.of([ours.value]), Spread.of([theirs.value])
                reach = Reach("at least", REACH.get(workers, 0.95))
                yield Line(name, "rows/s", rates[0], ratio, rates[1], reach, dict(ours.work), tuple(notes))


def _engine(folder: Path, workers: int, seconds: float, rows: int, side: int) -> tuple[Turn, list[str]]:
    spec = spec_of(
        folder,
        "depth",
        folder / "in",
        model={"steps": 1, "batch_size": 1, "height": side, "width": side},
        output={"shard_rows": SHARD_ROWS},
        resources={"workers": workers, "device": "cpu", "shards_in_flight": IN_FLIGHT, "straggler_factor": None},
        name=f"waiting-{seconds}",
    )
    summary = run_job(spec, worker_class=WaitingWorker, profile=True)
    calls = [json.loads(line) for line in Path(f"{spec.output.uri}.calls").read_text().splitlines()]
    windows: dict[int, list[tuple[float, float, int]]] = {}
    for process, began, ended, count in calls:
        windows.setdefault(process, []).append((began, ended, count))
    rate = 0.0
    for calls_of_worker in windows.values():
        window = max(ended for _, ended, _ in calls_of_worker) - min(began for began, *_ in calls_of_worker)
        rate += sum(count for *_, count in calls_of_worker) / window
    first, last = min(began for _, began, *_ in calls), max(ended for _, _, ended, _ in calls)
    committed = last_commit(spec.output.uri, -(-rows // SHARD_ROWS))
    notes = [
        f"last commit {committed - last:.1f} s after the last call; {rows / (committed - first):.3g} rows/s from "
        "the first call to the last commit of this short job",
        describe_profile(summary.profile or {}),
    ]
    kept = summary.counts_now.get("kept", 0)
    return Turn(rate, {"workers": len(windows), "rows": kept, "seconds a row": seconds}), notes


def _sleep_alone(workers: int, seconds: float, rows: int) -> Turn:
    """Sleep as long, in threads."""
    share = rows // workers
    rates = [0.0] * workers

    def sleep(number: int) -> None:
        started = time.monotonic()
        for _ in range(share):
            time.sleep(seconds)
        rates[number] = share / (time.monotonic() - started)

    threads = [threading.Thread(target=sleep, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Turn(sum(rates), {"workers": workers, "rows": share * workers, "seconds a row": seconds})


def _write_corpus(folder: Path, images: list[bytes], rows: int) -> None:
    folder.mkdir(parents=True)
    for start in range(0, rows, 32):
        numbers = range(start, min(start + 32, rows))
        column = [{"bytes": images[number % len(images)], "path": None} for number in numbers]
        table = pa.table({"id": [f"{number:06d}" for number in numbers], "image": column})
        pq.write_table(table, folder / f"{start:06d}.parquet", row_group_size=8)


def _depth_of(rgb: NDArray[np.uint8], seed: int) -> NDArray[np.float32]:
    """Return a map with the image's edges and some noise, which encodes like a model's."""
    noise = np.random.default_rng(seed).normal(0, 2e-4, rgb.shape[:2])
    return np.clip(rgb[..., 0] / 255.0 + noise, 0, 1).astype(np.float32)
