"""CPU time and memory of the driver per shard, extrapolated to 10,000 shards.

For each number of shards a fresh process runs the whole job: plan, dispatch, publish, card. Its CPU time includes all
its threads, also those of Ray; workers and tasks are other processes. The slope is the cost of a shard. Card and
gallery read at most SCORED_TABLES tables. They are written a second time after the job, and their slope is extrapolated
to that number of tables only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import call_in_process, in_environment, peak_bytes, spec_of, write_prompts
from jobs.tools.bench.tiny_job import THREADS
from pipelines.dataset.card.tables import SCORED_TABLES

GOAL = 10_000  # shards to extrapolate to
SIZES = (200, 400, 800)
SIDE = 16  # pixels


def stand_in(*, seeds: list[int], **_: Any) -> SimpleNamespace:
    """Return small images and depth maps without a model."""
    ramp = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    images = [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for seed in seeds]
    maps = np.stack([ramp] * len(seeds))
    return SimpleNamespace(rgb=np.stack(images), disparity=maps, finite=np.ones(len(seeds), bool))


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the CPU time per shard and the memory at GOAL shards."""
    seconds: dict[float, float] = {}
    card_seconds: dict[float, float] = {}
    memory: dict[float, float] = {}
    sizes = (4, 8) if settings.quick else SIZES
    for shards in sizes:
        folder = settings.folder / str(shards)
        write_prompts(folder / "prompts.txt", shards)
        with in_environment(**THREADS):
            answer = call_in_process("driver", str(folder))
        assert answer["shards"] == shards, f"{answer['shards']} of {shards} shards were committed"
        seconds[shards], memory[shards] = answer["seconds"], answer["bytes"] / 1e6
        card_seconds[shards] = answer["card_seconds"]
    per_table, _ = slope(card_seconds)
    per_shard, start = slope({shards: seconds[shards] - per_table * shards for shards in seconds})
    at_goal = start + per_shard * GOAL + per_table * SCORED_TABLES
    growth, bottom = slope(memory)
    work = {"shards": sizes[-1], "rows": sizes[-1]}
    took = ", ".join(f"{shards:,} {value:.2f} s" for shards, value in seconds.items())
    cards = ", ".join(f"{value:.2f} s" for value in card_seconds.values())
    notes = (
        f"CPU {took}; card and gallery alone, written a second time, {cards}",
        f"{1000 * per_shard:.2f} ms per shard after {start:.2f} s; card and gallery {1000 * per_table:.2f} ms for "
        f"each of at most {SCORED_TABLES:,} tables; so {GOAL:,} shards take {at_goal:.0f} s",
    )
    per_shard_at_goal = Spread.of([1000 * at_goal / GOAL])
    what = f"CPU time a shard, of {GOAL:,}"
    yield Line(what, "ms", per_shard_at_goal, per_shard_at_goal, None, Reach("at most", 10), work, notes)
    needed = ", ".join(f"{shards:,} {size:.0f} MB" for shards, size in memory.items())
    note = f"peak {needed}: {1e6 * growth:.0f} bytes per shard"
    size = Spread.of([bottom + growth * GOAL])
    yield Line(f"memory at {GOAL:,} shards", "MB", size, size, None, Reach("at most", 1000), work, (note,))


def run_here(folder: Path) -> dict[str, float]:
    """Run the job in this process; return CPU seconds, peak bytes, committed shards, and card and gallery seconds."""
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
    peak = peak_bytes()
    assert summary.version is not None, "no limit stops the run"
    storage, started = Storage(spec.output.uri), time.process_time()
    gallery.write(storage, summary.version)
    card.write(storage, Ledger(storage).read_job(), summary.version)
    card_seconds = time.process_time() - started
    return {"shards": summary.committed_now, "seconds": seconds, "bytes": peak, "card_seconds": card_seconds}


if __name__ == "__main__":
    print(json.dumps(run_here(Path(sys.argv[1]))))
