"""CPU time and memory that the driver takes a shard: real runs with a model without weights, extrapolated to 10,000.

Each number of shards is a process of its own that runs the whole job: plan, dispatch, publish, card. Its CPU time is
that of all its threads, Ray's own among them; workers and tasks are other processes. The slope is what a shard adds.
Card and gallery look at so many tables at most, which these jobs do not reach: so they are written again, after the
job, and their slope is extrapolated to that number only.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import in_environment, spec_of, write_prompts
from jobs.tools.bench.tiny_job import THREADS
from pipelines.dataset.card.tables import SCORED_TABLES

GOAL = 10_000  # shards
SIZES = (200, 400, 800)
SIDE = 16  # pixels


def stand_in(*, seeds: list[int], **_: Any) -> SimpleNamespace:
    """Small images and maps without a model."""
    ramp = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    images = [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for seed in seeds]
    maps = np.stack([ramp] * len(seeds))
    return SimpleNamespace(rgb=np.stack(images), disparity=maps, finite=np.ones(len(seeds), bool))


def measure(settings: Settings) -> Iterator[Line]:
    """Milliseconds of CPU a shard, and memory at the goal."""
    seconds: dict[float, float] = {}
    shown: dict[float, float] = {}
    memory: dict[float, float] = {}
    sizes = (4, 8) if settings.quick else SIZES
    for shards in sizes:
        folder = settings.folder / str(shards)
        write_prompts(folder / "prompts.txt", shards)
        with in_environment(**THREADS):
            command = [sys.executable, "-m", "jobs.tools.bench.driver", str(folder)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert told["shards"] == shards, f"{told['shards']} of {shards} shards were committed"
        seconds[shards], memory[shards] = told["seconds"], told["bytes"] / 1e6
        shown[shards] = told["shown"]
    a_table, _ = slope(shown)
    a_shard, start = slope({shards: seconds[shards] - a_table * shards for shards in seconds})
    at_goal = start + a_shard * GOAL + a_table * SCORED_TABLES
    growth, bottom = slope(memory)
    work = {"shards": sizes[-1], "rows": sizes[-1]}
    took = ", ".join(f"{shards:,} {each:.2f} s" for shards, each in seconds.items())
    again = ", ".join(f"{each:.2f} s" for each in shown.values())
    notes = (
        f"CPU {took}; of it card and gallery, written again, {again}",
        f"{1000 * a_shard:.2f} ms a shard after {start:.2f} s; card and gallery {1000 * a_table:.2f} ms a table, of "
        f"{SCORED_TABLES:,} at most; so {GOAL:,} shards take {at_goal:.0f} s",
    )
    each = Spread.of([1000 * at_goal / GOAL])
    yield Line(f"CPU time a shard, of {GOAL:,}", "ms", each, each, None, Reach("at most", 10), work, notes)
    needed = ", ".join(f"{shards:,} {size:.0f} MB" for shards, size in memory.items())
    note = f"peak {needed}: {1e6 * growth:.0f} bytes a shard"
    size = Spread.of([bottom + growth * GOAL])
    yield Line(f"memory at {GOAL:,} shards", "MB", size, size, None, Reach("at most", 1000), work, (note,))


def run_here(folder: Path) -> dict[str, float]:
    """The job here: its CPU seconds and peak memory, shards committed, and CPU seconds of card and gallery alone."""
    from pipelines.dataset import card, gallery
    from pipelines.ledger.ledger import Ledger
    from pipelines.run.job import run_job
    from pipelines.stages.generate import GenerationWorker
    from pipelines.store.storage import Storage

    class StandInWorker(GenerationWorker):
        def load(self) -> Any:
            return stand_in

    spec = spec_of(
        folder,
        "joint",
        folder / "prompts.txt",
        model={"height": SIDE, "width": SIDE, "steps": 1},
        output={"shard_rows": 1},
        resources={"workers": 1, "device": "cpu"},
    )
    started = time.process_time()
    summary = run_job(spec, worker_class=StandInWorker)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert summary.version is not None, "no limit stops it"
    storage, started = Storage(spec.output.uri), time.process_time()
    gallery.write(storage, summary.version)
    card.write(storage, Ledger(storage).read_job(), summary.version)
    shown = time.process_time() - started
    return {"shards": summary.committed_now, "seconds": seconds, "bytes": peak, "shown": shown}


if __name__ == "__main__":
    print(json.dumps(run_here(Path(sys.argv[1]))))
