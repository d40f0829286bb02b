"""Seconds until a driver knows what is left of a job with many committed shards: `run`'s own look at its ledger.

The plan is written by the engine, the commits are records as `finish` writes them. Each look is a process of its own
with a fresh connection, and says its time and its peak memory. The first has no roll-up and leaves one, the second
uses it. 100 shards are left, and both must name exactly those.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.s3_store import running_store
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome, StoredObject
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.resume import ROLL_UP, read_remaining
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.store.storage import Storage

LEFT = 100
SHARD_ROWS = 256
WRITERS = 8
MILLION = 1_000_000
LOCAL, S3 = (10_000, 100_000), (10_000, 100_000)
LOOKS = 3  # each way, at each size
Put = Callable[[str, bytes], object]  # an object's path in the storage, and its bytes


def measure(settings: Settings) -> Iterator[Line]:
    """10 k and 100 k shards, on a local disk and on S3."""
    sizes = (200, 400) if settings.quick else LOCAL
    yield from _measure_store(str(settings.folder / "local"), "local", sizes, settings)
    with running_store(settings.folder) as store:
        yield from _measure_store(store.bucket, "S3", (200, 400) if settings.quick else S3, settings, put=store.put)


def measure_million(settings: Settings) -> Iterator[Line]:
    """A million shards on a local disk: commits that are short, so that a small disk holds them."""
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
    """Seconds and memory of the first look at the largest size with their slopes, and how much faster the second is."""
    first: dict[float, list[float]] = {}
    second: dict[float, list[float]] = {}
    memory: dict[float, float] = {}
    made = 0
    for shards in sizes:
        storage = Storage(f"{uri}/{shards}")
        _write_job(storage, shards, samples, put)
        first[shards], second[shards] = [], []
        for _ in range(1 if settings.quick else LOOKS):
            storage.delete(ROLL_UP)
            for looks in (first, second):
                told = _look_elsewhere(storage.uri)
                assert told["left"] == list(range(shards - LEFT, shards)), f"{len(told['left'])} shards are left"
                looks[shards].append(told["seconds"])
                memory[shards] = max(memory.get(shards, 0.0), told["bytes"] / 1e6)
        made = shards
    ours, again = Spread.of(first[made]), Spread.of(second[made])
    a_shard, start = slope({shards: Spread.of(found).median for shards, found in first.items()})
    took = ", ".join(f"{shards:,} {Spread.of(found).median:.2f} s" for shards, found in first.items())
    work = {"shards committed": made - LEFT, "left": LEFT}
    note = f"{took}: {a_shard * 1e6:.1f} microseconds a shard after {start:.2f} s"
    yield Line(f"{where}, {made:,} shards", "s", ours, ours, None, None, work, (note,))
    needed = ", ".join(f"{shards:,} {each:.0f} MB" for shards, each in memory.items())
    growth, _ = slope(memory)
    peak = Spread.of([memory[made]])
    note = f"{needed}: {growth * 1e6:.0f} bytes a shard"
    yield Line(f"{where}, {made:,} shards: memory", "MB", peak, peak, None, Reach("at most", 1000), work, (note,))
    ratio = Spread.of([a / b for a, b in zip(first[made], second[made], strict=True)])
    note = "compared with: the second look, by the roll-up that the first left; figure: how many times faster it is"
    yield Line(f"{where}, {made:,} shards: roll-up", "s", ours, ratio, again, Reach("at least", 5), work, (note,))


def _write_job(storage: Storage, shards: int, samples: int, put: Put | None = None) -> None:
    """A plan, and the commits of all its shards but the last ones; on a local disk without `put`."""
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
        for _ in pool.map(write, entries[:-LEFT], chunksize=64):
            pass


def _write_file(path: str, data: bytes) -> None:
    """Without the fsync of a commit: the writing is not measured."""
    Path(path).write_bytes(data)


def _commit_of(entry: PlannedShard, samples: int) -> Commit:
    name = entry.shard.spans[0].relative_path
    outcomes = tuple(SampleOutcome(f"{name}:{n}/0", 0, n, 0, "kept") for n in range(min(samples, 8)))
    table = StoredObject(f"data/{entry.shard.id}-{'0' * 16}.parquet", 10**7, "0" * 64, samples, "kept")
    return Commit(entry.shard.id, "0" * 16, (table,), outcomes, "bench", "host", "2026-01-01T00:00:00+00:00", 1.0)


def _look_elsewhere(uri: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.tools.bench.resume", uri]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def look_here(uri: str) -> dict[str, Any]:
    """Look at a ledger in this process: seconds, peak memory, positions of the shards that are left."""
    storage = Storage(uri)
    read_remaining(Ledger(Storage(f"{uri}-nothing")))  # imports and the connection are there before, as in a run
    started = time.perf_counter()
    left = read_remaining(Ledger(storage))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "bytes": peak, "left": [entry.position for entry in left.pending]}


if __name__ == "__main__":
    print(json.dumps(look_here(sys.argv[1])))
