"""Rows/s of a whole job on one warm worker, beside the bare loop of the same model on the same batches.

Both sides have one model thread. The engine's side has the machine's other cores for Ray, reading, finishing and the
driver; the bare loop reads nothing and writes nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from jobs.tools.bench.frame import Line, Pairs, Reach, Settings, Spread, Turn, alternate
from jobs.tools.bench.local_runs import chunks, in_environment, prompts
from jobs.tools.bench.tiny_job import (
    THREADS,
    TinyJob,
    digest_of,
    levels_of,
    load_alone,
    run_engine,
    seed_of,
    warm,
)
from pipelines.engine.usage import WORKERS, shares_of

TURN_SECONDS = 36.0  # so that reading the first shard and finishing the last one are two parts in a hundred
PAIRS = 2
BATCH, BATCHES_A_SHARD, STEPS = 8, 4, 4


def measure(settings: Settings) -> Iterator[Line]:
    """The ratio until the last commit, and the same with publishing, card and gallery of so short a job."""
    with in_environment(**THREADS):
        pipe = load_alone()
        job = sized_job(settings, pipe, TURN_SECONDS)
        job.write_input()
        profiles: list[dict[str, float]] = []
        numbers = itertools.count()

        def ours() -> Turn:
            turn, summary = run_engine(job, f"turn-{next(numbers)}")
            profiles.append(summary.profile or {})
            work = {name: turn.work[name] for name in ("rows", "pixels")}
            return Turn(turn.value, work, turn.detail)

        pairs = 1 if settings.quick else PAIRS
        found = alternate(ours, lambda: _bare(job, pipe), pairs=pairs, seconds=settings.seconds, warm_up=False)
    pairs_of = zip(profiles, found.theirs, strict=True)
    calls = Spread.of([job.rows / busy_seconds(each) / turn.value for each, turn in pairs_of])
    notes = [
        f"{STEPS} steps, batches of {job.batch_size}, shards of {job.shard_rows}; one thread",
        f"the worker's calls alone, without the time between them, run at {calls.median:.3f} of the bare loop",
        told(profiles[-1]),
    ]
    yield found.line("one worker, to the last commit", "rows/s", Reach("at least", 0.97), notes)
    yield _with_publishing(found)


def sized_job(settings: Settings, pipe: Any, seconds: float) -> TinyJob:
    """As many rows as take the model so many seconds here."""
    if settings.quick:
        return TinyJob(settings.folder, rows=4, shard_rows=2, batch_size=2, steps=1)
    size = TinyJob(settings.folder, 0, BATCH * BATCHES_A_SHARD, BATCH, STEPS)
    warm(pipe, size.settings, BATCH)
    a_batch = warm(pipe, size.settings, BATCH)
    shards = max(3, round(seconds / (a_batch * BATCHES_A_SHARD)))
    return TinyJob(settings.folder, shards * size.shard_rows, size.shard_rows, BATCH, STEPS)


def _bare(job: TinyJob, pipe: Any) -> Turn:
    """The model alone, a batch after the other."""
    parts = chunks(list(zip(job.ids, prompts(job.rows), strict=True)), job.batch_size)
    outputs = []
    started = time.perf_counter()
    for part in parts:
        seeds, texts = [seed_of(identifier) for identifier, _ in part], [text for _, text in part]
        outputs.append(pipe(prompt=texts, seeds=seeds, **job.settings))
    seconds = time.perf_counter() - started
    arrays = ((rgb, levels_of(map_)) for each in outputs for rgb, map_ in zip(each.rgb, each.disparity, strict=True))
    return Turn(job.rows / seconds, {"rows": job.rows, "pixels": digest_of(arrays)})


def _with_publishing(found: Pairs) -> Line:
    ratios = [a.detail["whole"] / b.value for a, b in zip(found.ours, found.theirs, strict=True)]
    bare = Spread.of([turn.value for turn in found.theirs])
    seconds = found.detail("published").median
    note = f"publishing, card and gallery took {seconds:.1f} s after the last commit: once a run, however long it is"
    work = dict(found.ours[0].work)
    return Line("with publishing", "rows/s", found.detail("whole"), Spread.of(ratios), bare, None, work, (note,))


def busy_seconds(profile: dict[str, float]) -> float:
    """Of workers, in their calls: their time without loading the model, and without waiting for a call."""
    return sum(seconds for name, seconds in profile.items() if name in WORKERS and name not in ("start", "idle"))


def told(profile: dict[str, float]) -> str:
    """A profile in a sentence; without the start, which lies before a bench's clock."""
    warm = {**profile, "start": 0.0}
    shares = shares_of(warm)
    workers = ", ".join(f"{name} {shares[name]:.1%}" for name in warm if name in WORKERS and name != "start")
    tasks = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in warm.items() if name not in WORKERS)
    return f"profile of the last turn, of the warm worker's time: {workers}; tasks: {tasks}"
