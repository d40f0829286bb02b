"""Seconds and memory of what follows the commits: publishing, publishing again, gc, diff, status.

The engine writes the plan and the commits are records like those of `finish`, but no tables exist: a version only names
them. Each step is a fresh process that reports its time and peak memory.

1. `publish`: the first version of all samples.
2. `publish, nothing new`: again, without a new commit.
3. `publish, 1 % new`: after another plan file with as many shards as a hundredth of the first.
4. `gc`, `diff` and `status` of that output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import call_in_process, context_of, peak_bytes
from pipelines.dataset.diff import compare
from pipelines.dataset.garbage import collect_garbage
from pipelines.dataset.publish import publish
from pipelines.dataset.status import read_status
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome, StoredObject
from pipelines.ledger.ledger import Ledger
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.store.storage import Storage

SHARD_ROWS = 256
MILLION = 1_000_000
CORPUS_SIZES = (MILLION, 5 * MILLION, 25 * MILLION)
STEPS = ("publish", "publish, nothing new", "publish, 1 % new", "gc", "diff", "status")
REACH = {  # step -> (seconds at the largest corpus size, or None)
    "publish": Reach("at most", 500.0),  # 50,000 samples a second
    "publish, nothing new": Reach("at most", 2.0),
    "publish, 1 % new": Reach("at most", 60.0),
    "gc": Reach("at most", 250.0),
    "diff": Reach("at most", 250.0),
    "status": Reach("at most", 5.0),
}
MEMORY = Reach("at most", 1500.0)  # MB


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the lines for up to a million samples."""
    yield from _measure(settings, (20_000, 40_000) if settings.quick else (MILLION // 4, MILLION), {})


def measure_corpus(settings: Settings) -> Iterator[Line]:
    """Yield the lines for 1, 5 and 25 million samples. Writing 100,000 commits takes minutes and 2 GB."""
    yield from _measure(settings, (20_000, 40_000) if settings.quick else CORPUS_SIZES, REACH)


def _measure(settings: Settings, sizes: Sequence[int], reach: dict[str, Reach]) -> Iterator[Line]:
    answers: dict[str, dict[float, dict[str, Any]]] = {step: {} for step in STEPS}
    for size in sizes:
        folder = settings.folder / str(size)
        shards = size // SHARD_ROWS
        _write_job(folder, 1, shards)
        for step in STEPS:
            if step == "publish, 1 % new":
                _write_job(folder, 2, max(1, shards // 100))
            answers[step][size] = call_in_process("publish", step, str(folder))
    largest = max(sizes)
    for step, found in answers.items():
        seconds = {size: answer["seconds"] for size, answer in found.items()}
        memory = {size: answer["bytes"] / 1e6 for size, answer in found.items()}
        (per_sample, start), (growth, _) = slope(seconds), slope(memory)
        ours, peak = Spread.of([seconds[largest]]), Spread.of([memory[largest]])
        took = ", ".join(f"{size:,} {value:.2f} s" for size, value in seconds.items())
        hundred = (start + per_sample * 100 * MILLION) / 60
        notes = (f"{took}: {per_sample * 1e6:.2f} microseconds a sample; 100 million by the slope: {hundred:.1f} min",)
        work = {"samples": largest}
        yield Line(f"{step}, {largest:,} samples", "s", ours, ours, None, reach.get(step), work, notes)
        needed = ", ".join(f"{size:,} {value:.0f} MB" for size, value in memory.items())
        notes = (f"{needed}: {growth * 1e6:.1f} bytes a sample",)
        yield Line(f"{step}: memory", "MB", peak, peak, None, MEMORY if reach else None, work, notes)


def _write_job(folder: Path, plan: int, shards: int) -> None:
    """Write a plan file and the commits of its shards to a local disk."""
    context = context_of(folder, "joint", 32)
    ledger = Ledger(context.storage)
    ledger.open_job(context.spec, context.fingerprint)
    spans = [
        Span(f"/corpus/{plan}-{n // 1000}.txt", "1", f"{plan}-{n // 1000}.txt", n % 1000 * 256, (n % 1000 + 1) * 256)
        for n in range(shards)
    ]
    entries = [PlannedShard(make_shard([span], 0, "bench"), 1, plan, n) for n, span in enumerate(spans)]
    ledger.append_plan(plan, entries)
    commits = Path(context.storage.path("_commits"))
    commits.mkdir(parents=True, exist_ok=True)
    for entry in entries:  # without fsync, because writing is not measured
        (commits / f"{entry.shard.id}.json").write_bytes(_commit_of(entry).to_bytes())


def _commit_of(entry: PlannedShard) -> Commit:
    (span,) = entry.shard.spans
    outcomes = tuple(
        SampleOutcome(f"{span.relative_path}:{n}/0", 0, n, 0, "rejected", ("depth_range: 0.04 is below 0.1",))
        if n % 20 == 0
        else SampleOutcome(f"{span.relative_path}:{n}/0", 0, n, 0, "kept")
        for n in range(span.start, span.stop)
    )
    rejected = sum(sample.outcome == "rejected" for sample in outcomes)
    name = f"{entry.shard.id}-{'0' * 16}.parquet"
    tables = (
        StoredObject(f"data/{name}", 10**7, "0" * 64, len(outcomes) - rejected, "kept"),
        StoredObject(f"rejected/{name}", 10**6, "1" * 64, rejected, "rejected"),
    )
    return Commit(entry.shard.id, "0" * 16, tables, outcomes, "bench", "host", "2026-01-01T00:00:00+00:00", 1.0)


def run_step(step: str, folder: str) -> dict[str, Any]:
    """Take one step in this process. Returns its seconds and the peak memory of the process in bytes."""
    context = context_of(Path(folder), "joint", 32)
    storage, uri = Storage(context.storage.uri), context.storage.uri
    started = time.perf_counter()
    if step.startswith("publish"):
        _, is_new = publish(storage, Ledger(storage), context.spec)
        assert is_new == (step != "publish, nothing new")
    elif step == "gc":
        assert not collect_garbage(uri, 0).objects
    elif step == "diff":
        assert compare(uri, 1, 2).added
    else:
        assert read_status(uri).is_complete
    return {"seconds": time.perf_counter() - started, "bytes": peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(run_step(*sys.argv[1:])))
