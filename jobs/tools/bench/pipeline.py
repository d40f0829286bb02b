"""Rows/s of a whole job on one warm worker, beside a plain loop of the same model.

The model has one thread on both sides. The engine uses the other cores for Ray, the driver, and the read and finish
tasks; the plain loop reads and writes nothing.
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

TURN_SECONDS = 36.0  # so that read of the first and finish of the last shard take about 2%
PAIRS = 2
BATCH, BATCHES_PER_SHARD, STEPS = 8, 4, 4


def measure(settings: Settings) -> Iterator[Line]:
    """Yield the ratio until the last commit, and the ratio until the dataset is published."""
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
        turns = alternate(ours, lambda: _plain_loop(job, pipe), pairs=pairs, seconds=settings.seconds, warm_up=False)
    calls = busy_rates(job, profiles, turns)
    notes = [
        f"{STEPS} steps, batches of {job.batch_size}, shards of {job.shard_rows}; one thread",
        f"the worker's calls alone, without the time between them, run at {calls.median:.3f} of the plain loop",
        describe_profile(profiles[-1]),
    ]
    yield turns.line("one worker, to the last commit", "rows/s", Reach("at least", 0.97), notes)
    yield _with_publishing(turns)


def sized_job(settings: Settings, pipe: Any, seconds: float) -> TinyJob:
    """Return a job that keeps the model busy for about `seconds` on this machine."""
    if settings.quick:
        return TinyJob(settings.folder, rows=4, shard_rows=2, batch_size=2, steps=1)
    size = TinyJob(settings.folder, 0, BATCH * BATCHES_PER_SHARD, BATCH, STEPS)
    warm(pipe, size.settings, BATCH)
    batch_seconds = warm(pipe, size.settings, BATCH)
    shards = max(3, round(seconds / (batch_seconds * BATCHES_PER_SHARD)))
    return TinyJob(settings.folder, shards * size.shard_rows, size.shard_rows, BATCH, STEPS)


def _plain_loop(job: TinyJob, pipe: Any) -> Turn:
    """Run the batches in a loop, without the engine."""
    parts = chunks(list(zip(job.ids, prompts(job.rows), strict=True)), job.batch_size)
    outputs = []
    started = time.perf_counter()
    for part in parts:
        seeds, texts = [seed_of(identifier) for identifier, _ in part], [text for _, text in part]
        outputs.append(pipe(prompt=texts, seeds=seeds, **job.settings))
    seconds = time.perf_counter() - started
    arrays = ((rgb, levels_of(map_)) for out in outputs for rgb, map_ in zip(out.rgb, out.disparity, strict=True))
    return Turn(job.rows / seconds, {"rows": job.rows, "pixels": digest_of(arrays)})


def _with_publishing(turns: Pairs) -> Line:
    ratios = [a.detail["whole"] / b.value for a, b in zip(turns.ours, turns.theirs, strict=True)]
    theirs = Spread.of([turn.value for turn in turns.theirs])
    seconds = turns.detail("published").median
    note = f"publishing, card and gallery took {seconds:.1f} s after the last commit, once per run of any length"
    work = dict(turns.ours[0].work)
    return Line("with publishing", "rows/s", turns.detail("whole"), Spread.of(ratios), theirs, None, work, (note,))


def busy_rates(job: TinyJob, profiles: list[dict[str, float]], turns: Pairs) -> Spread:
    """Return rows/s within our worker's calls, without loading and waiting, relative to the other side."""
    ratios = []
    for profile, turn in zip(profiles, turns.theirs, strict=True):
        busy = sum(seconds for name, seconds in profile.items() if name in WORKERS and name not in ("start", "idle"))
        ratios.append(job.rows / busy / turn.value)
    return Spread.of(ratios)


def describe_profile(profile: dict[str, float]) -> str:
    """Return a profile in words, without the start, which is before the clock."""
    warm = {**profile, "start": 0.0}
    shares = shares_of(warm)
    workers = ", ".join(f"{name} {shares[name]:.1%}" for name in warm if name in WORKERS and name != "start")
    tasks = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in warm.items() if name not in WORKERS)
    return f"profile of the last turn, share of the warm worker's time: {workers}; tasks: {tasks}"
