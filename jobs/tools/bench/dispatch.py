"""Requests, CPU time and memory of the driver per shard, with 1,000 workers and up to a million committed shards.

A fresh process for each size runs the engine's dispatcher on a simulated cluster (simulated.py) whose workers
join and are lost. Plan, ledger and commits of new shards are real files on a local disk. Committed shards are
synthetic: they are in the plan files and in listings, without files. The CPU time is that of all threads of the driver
from its first wait, without that of the simulation; submissions to Ray are not in it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import call_in_process, context_of, peak_bytes
from jobs.tools.bench.simulated import CountingStorage, SimulatedCluster, World
from pipelines.engine.cluster import WorkerPlan
from pipelines.engine.dispatch import Dispatcher
from pipelines.engine.flow import Flow
from pipelines.engine.limits import Limits
from pipelines.engine.progress import Progress
from pipelines.engine.workers import WorkerPool
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.names import plan_file
from pipelines.ledger.resume import read_remaining
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.stages.generate import GenerationWorker

SHARD_ROWS = 256
FILE_SHARDS = 1000  # planned shards in an input file
PLAN_SHARDS = 100_000  # in a plan file
SIZES = (1_000, 100_000)  # committed shards
CORPUS_SIZES = (1_000, 100_000, 1_000_000)
WORKERS, SHARDS = 1_000, 3_000
REPEATS = 3


def measure(settings: Settings) -> Iterator[Line]:
    """Yield requests, CPU time and memory over 1 k and 100 k committed shards."""
    yield from _measure(settings, (60, 600) if settings.quick else SIZES)


def measure_corpus(settings: Settings) -> Iterator[Line]:
    """Yield the same up to a million committed shards."""
    yield from _measure(settings, (60, 600) if settings.quick else CORPUS_SIZES)


def _measure(settings: Settings, sizes: Sequence[int]) -> Iterator[Line]:
    """Yield the lines of each size, and the ratios of the largest figure to the smallest; the sizes take turns."""
    workers, shards = (20, 60) if settings.quick else (WORKERS, SHARDS)
    answers: dict[int, list[dict[str, Any]]] = {committed: [] for committed in sizes}
    for committed in sizes:
        write_plan(CountingStorage(str(settings.folder / str(committed) / "out")), committed, shards)
    for _ in range(1 if settings.quick else REPEATS):
        for committed in sizes:
            folder = settings.folder / str(committed)
            answers[committed].append(call_in_process("dispatch", *map(str, (folder, committed, shards, workers))))
            forget_commits(folder / "out")
    for committed in sizes:
        yield from _lines(f"{committed:,} committed", answers[committed], shards, workers)
    between = f"{min(sizes):,} to {max(sizes):,} committed"
    memory: dict[float, float] = {
        committed: max(answer["bytes"] for answer in answers[committed]) for committed in sizes
    }
    notes = (
        "the largest median of a size beside the smallest",
        f"memory: {slope(memory)[0]:.0f} bytes for each committed shard, by the plan and the ids of commits",
    )
    for what, key in (("CPU per shard", "seconds"), ("requests per shard", "count")):
        medians = [Spread.of([answer[key] for answer in answers[committed]]).median for committed in sizes]
        ratio = Spread.of([max(medians) / min(medians)])
        yield Line(f"{between}: {what}", "x", ratio, ratio, None, Reach("at most", 1.1), {"sizes": len(sizes)}, notes)


def _lines(where: str, answers: Sequence[dict[str, Any]], shards: int, workers: int) -> Iterator[Line]:
    first, work = answers[0], {"shards": shards, "workers": workers, "workers lost": answers[0]["lost"]}
    notes = (
        f"requests of the driver: {_shown(first['requests'])}; of tasks: {_shown(first['task_requests'])}",
        f"{first['waits'] / shards:.1f} turns of the loop a shard; {first['hours']:.2f} simulated hours",
        f"before the first turn {first['start']:.2f} s of CPU to read the plan and list the commits once",
    )
    spent = Spread.of([1000 * answer["seconds"] / shards for answer in answers])
    yield Line(f"{where}: CPU per shard", "ms", spent, spent, None, Reach("at most", 3), work, notes)
    count = Spread.of([answer["count"] / shards for answer in answers])
    yield Line(f"{where}: requests per shard", "", count, count, None, Reach("at most", 1.2), work)
    memory = Spread.of([answer["bytes"] / 1e6 for answer in answers])
    yield Line(f"{where}: memory", "MB", memory, memory, None, Reach("at most", 1000), work)


def _shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def write_plan(storage: CountingStorage, committed: int, shards: int) -> None:
    """Write plan files of `committed` + `shards` shards; the last `shards` ones are pending."""
    ledger, total = Ledger(storage), committed + shards
    for number, first in enumerate(range(0, total, PLAN_SHARDS), 1):
        entries = []
        for position in range(first, min(first + PLAN_SHARDS, total)):
            name, start = f"{number:03d}-{position // FILE_SHARDS:05d}.txt", position % FILE_SHARDS * SHARD_ROWS
            shard = make_shard([Span(f"/corpus/{name}", "1", name, start, start + SHARD_ROWS)], 0, "bench")
            entries.append(PlannedShard(shard, 1, number, position - first))
        ledger.append_plan(number, entries)


def planned_ids(storage: CountingStorage, committed: int) -> Iterator[str]:
    """Yield the ids of the first `committed` planned shards."""
    for number in range(1, 2 + committed // PLAN_SHARDS):
        left = committed - (number - 1) * PLAN_SHARDS
        if left > 0:
            ids = pq.read_table(storage.path(plan_file(number)), columns=["shard"])["shard"].slice(0, left)
            yield from ids.to_pylist()


def forget_commits(output: Path) -> None:
    """Remove the commits and the roll-up of a run, so that the next one makes the same shards."""
    for folder in ("_commits", "_rollup"):
        for path in (output / folder).glob("*"):
            path.unlink()


def changes_of(workers: int) -> list[tuple[float, int]]:
    """Return joins and losses: a quarter of the workers joins late; each minute, eight are lost and eight join."""
    node = max(1, min(8, workers // 10))
    losses = [(60.0 * number, -node) for number in range(2, 60)]
    return [(100.0, workers - 3 * workers // 4), *losses, *((when + 60, node) for when, _ in losses)]


def dispatcher_on(cluster: SimulatedCluster, ledger: Ledger, folder: Path, **sections: Any) -> Dispatcher:
    """Return a dispatcher of a job in `folder` on a simulated cluster; `sections` are those of the spec."""
    context = replace(context_of(folder, "joint", 512, **sections), storage=cluster.storage)
    plan = WorkerPlan(cluster.room, 1.0, 1.0, 1.0, 1, "cuda", follows=True, store_bytes=cluster.world.store_bytes)
    pool = WorkerPool(cluster, context, plan, GenerationWorker, context.spec.resources.start_seconds)
    return Dispatcher(Flow(cluster, context, context, ledger, pool, Progress()), Limits())


def dispatch_here(folder: Path, committed: int, shards: int, workers: int) -> dict[str, Any]:
    """Dispatch the pending shards in this process; return CPU seconds, requests and peak bytes."""
    plain = CountingStorage(str(folder / "out"))
    storage = CountingStorage(plain.uri, lambda: planned_ids(plain, committed))
    ledger, started = Ledger(storage), time.process_time()
    remaining = read_remaining(ledger)
    assert (len(remaining.pending), remaining.committed) == (shards, committed), "the plan is not as it was written"
    world = World(3 * workers // 4, changes=changes_of(workers), rivals=0.01)
    cluster = SimulatedCluster(storage, world)
    dispatcher = dispatcher_on(cluster, ledger, folder)
    dispatcher.run(remaining.pending)
    (began, before), ended = cluster.began, time.process_time() - cluster.seconds
    assert len(dispatcher.take_committed()) == shards, "a shard has no commit"
    requests = storage.requests - before
    return {
        "seconds": ended - began,
        "start": began - started,
        "bytes": peak_bytes(),
        "count": requests.total(),
        "requests": {" ".join(key): count for key, count in requests.items()},
        "task_requests": {" ".join(key): count for key, count in storage.task_requests.items()},
        "waits": cluster.waits,
        "lost": cluster.lost,
        "hours": cluster.now() / 3600,
    }


if __name__ == "__main__":
    print(json.dumps(dispatch_here(Path(sys.argv[1]), *map(int, sys.argv[2:5]))))
