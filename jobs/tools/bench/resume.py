"""Seconds until a driver knows the pending shards of a job with many commits.

The engine writes the plan; the commits are records like those of `finish`. A fresh process with a fresh connection
reads the ledger and reports its time and peak memory. The first process finds no roll-up and writes one, the second
uses it. 100 shards are pending, and both processes must name exactly these.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import call_in_process, peak_bytes
from jobs.tools.bench.s3_store import running_store
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome, StoredObject
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.resume import ROLL_UP, read_remaining
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.store.storage import Storage

PENDING = 100
SHARD_ROWS = 256
WRITERS = 8
MILLION = 1_000_000
SIZES = (10_000, 100_000)
REPEATS = 3  # with and without a roll-up, at each size
Put = Callable[[str, bytes], object]  # writes an object: path in the storage, bytes


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the lines for 10 k and 100 k shards, on a local disk and on S3."""
    sizes = (200, 400) if settings.quick else SIZES
    yield from _measure_store(str(settings.folder / "local"), "local", sizes, settings)
    with running_store(settings.folder) as store:
        yield from _measure_store(store.bucket, "S3", sizes, settings, put=store.put)


def measure_million(settings: Settings) -> Iterator[Line]:
    """Yield the lines for a million shards on a local disk, with short commits that fit on a small disk.

    Writing the files takes minutes, so `--all` leaves this bench out.
    """
    sizes = (1_000, 2_000) if settings.quick else (MILLION // 4, MILLION)
    lines = list(_measure_store(str(settings.folder / "local"), "local", sizes, settings, samples=1))
    for line, limit in zip(lines, (30.0, 1000.0), strict=False):
        yield Line(line.what, line.unit, line.ours, line.ours, None, Reach("at most", limit), line.work, line.notes)
    yield lines[-1]


def _measure_store(
    uri: str,
    where: str,
    sizes: Sequence[int],
    settings: Settings,
    samples: int = SHARD_ROWS,
    put: Put | None = None,
) -> Iterator[Line]:
    """Yield time and memory without a roll-up at the largest size, with slopes, and the speed-up by the roll-up."""
    first: dict[float, list[float]] = {}
    second: dict[float, list[float]] = {}
    memory: dict[float, float] = {}
    for shards in sizes:
        storage = Storage(f"{uri}/{shards}")
        _write_job(storage, shards, samples, put)
        first[shards], second[shards] = [], []
        for _ in range(1 if settings.quick else REPEATS):
            storage.delete(ROLL_UP)
            for times in (first, second):
                answer = call_in_process("resume", storage.uri)
                pending = answer["pending"]
                assert pending == list(range(shards - PENDING, shards)), f"{len(pending)} shards are pending"
                times[shards].append(answer["seconds"])
                memory[shards] = max(memory.get(shards, 0.0), answer["bytes"] / 1e6)
    largest = max(sizes)
    what, work = f"{where}, {largest:,} shards", {"shards committed": largest - PENDING, "left": PENDING}
    ours, with_roll_up = Spread.of(first[largest]), Spread.of(second[largest])
    medians = {shards: Spread.of(times).median for shards, times in first.items()}
    per_shard, start = slope(medians)
    took = ", ".join(f"{shards:,} {value:.2f} s" for shards, value in medians.items())
    note = f"{took}: {per_shard * 1e6:.1f} microseconds per shard after {start:.2f} s"
    yield Line(what, "s", ours, ours, None, None, work, (note,))
    needed = ", ".join(f"{shards:,} {value:.0f} MB" for shards, value in memory.items())
    growth, _ = slope(memory)
    peak = Spread.of([memory[largest]])
    note = f"{needed}: {growth * 1e6:.0f} bytes per shard"
    yield Line(f"{what}: memory", "MB", peak, peak, None, Reach("at most", 1000), work, (note,))
    ratio = Spread.of([a / b for a, b in zip(first[largest], second[largest], strict=True)])
    note = "baseline: the second process, which uses the roll-up of the first; figure: the speed-up"
    yield Line(f"{what}: roll-up", "s", ours, ratio, with_roll_up, Reach("at least", 5), work, (note,))


def _write_job(storage: Storage, shards: int, samples: int, put: Put | None = None) -> None:
    """Write a plan and the commits of all but the last PENDING shards; without `put` to a local disk."""
    spans = (Span(f"/corpus/{n // 1000}.txt", "1", f"{n // 1000}.txt", n, n + SHARD_ROWS) for n in range(shards))
    entries = [PlannedShard(make_shard([span], 0, "bench"), 1, 1, n) for n, span in enumerate(spans)]
    Ledger(storage).append_plan(1, entries)
    writers = WRITERS
    if put is None:
        put, writers = _write_file, 1
        Path(storage.path("_commits")).mkdir(parents=True)

    def write(entry: PlannedShard) -> None:
        put(storage.path(f"_commits/{entry.shard.id}.json"), _commit_of(entry, samples).to_bytes())

    with ThreadPoolExecutor(writers) as pool:
        for _ in pool.map(write, entries[:-PENDING], chunksize=64):
            pass


def _write_file(path: str, data: bytes) -> None:
    """Write a file without fsync, because writing is not measured."""
    Path(path).write_bytes(data)


def _commit_of(entry: PlannedShard, samples: int) -> Commit:
    name = entry.shard.spans[0].relative_path
    outcomes = tuple(SampleOutcome(f"{name}:{n}/0", 0, n, 0, "kept") for n in range(min(samples, 8)))
    table = StoredObject(f"data/{entry.shard.id}-{'0' * 16}.parquet", 10**7, "0" * 64, samples, "kept")
    return Commit(entry.shard.id, "0" * 16, (table,), outcomes, "bench", "host", "2026-01-01T00:00:00+00:00", 1.0)


def read_pending(uri: str) -> dict[str, Any]:
    """Read a ledger in this process; return seconds, peak bytes and the positions of the pending shards."""
    storage = Storage(uri)
    read_remaining(Ledger(Storage(f"{uri}-nothing")))  # imports and connections are not timed
    started = time.perf_counter()
    state = read_remaining(Ledger(storage))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": peak_bytes(), "pending": [entry.position for entry in state.pending]}


if __name__ == "__main__":
    print(json.dumps(read_pending(sys.argv[1])))
