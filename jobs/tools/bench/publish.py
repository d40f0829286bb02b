"""Seconds and memory of what follows the commits: publishing, publishing again, gc, diff, status, refilter, validate.

The engine writes the plan, and the commits are records like those of `finish`. Their tables hold ids, scores, hashes
and prompts, and neither images nor depth. Each step is a fresh process that reports its time and peak memory.

1. `publish`: the first version of all samples.
2. `publish, nothing new`: again, without a new commit.
3. `publish, 1 % new`: after another plan file with as many shards as a hundredth of the first.
4. `gc`, `diff` and `status` of that output.
5. `refilter`: a filter that rejects samples of a hundredth of the shards; a threshold in the reasons of every shard;
   `near_duplicate`, which compares all samples.
6. `validate --quick` of the result.
7. The first version once more, of both plan files, whose input files may share rows; then with `near_duplicate`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import call_in_process, context_of, peak_bytes
from pipelines.dataset.diff import compare
from pipelines.dataset.garbage import collect_garbage
from pipelines.dataset.publish import publish, publish_decision
from pipelines.dataset.refilter import Refilter, is_partial
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.entries import FOLDERS, Commit, Outcome, PlannedShard, SampleOutcome, StoredObject, sha256
from pipelines.ledger.ledger import Ledger
from pipelines.model.fingerprint import digest
from pipelines.plan.shards import make_shard
from pipelines.quality import SCORES
from pipelines.records import Span
from pipelines.stages.sinks.parquet import REASONS
from pipelines.store.parquet import parquet_bytes
from pipelines.store.storage import Storage

SHARD_ROWS = 256
MILLION = 1_000_000
CORPUS_SIZES = (MILLION, 5 * MILLION, 25 * MILLION)
STEPS = (
    "publish",
    "publish, nothing new",
    "publish, 1 % new",
    "gc",
    "diff",
    "status",
    "refilter, 1 % of the shards",
    "refilter, all shards",
    "refilter, near-duplicates",
    "validate --quick",
    "publish, files that may share rows",
    "publish, near-duplicates",
)
REFILTERS = {  # step -> filters
    "refilter, 1 % of the shards": "[{kind: depth_range}, {kind: blank_picture, min_span: 0.3}]",
    "refilter, all shards": "[{kind: depth_range, min_span: 0.2}]",
    "refilter, near-duplicates": "[{kind: depth_range, min_span: 0.2}, {kind: near_duplicate, max_distance: 2}]",
}
REACH = {  # step -> (seconds at the largest corpus size, or None)
    "publish": Reach("at most", 500.0),  # 50,000 samples a second
    "publish, nothing new": Reach("at most", 2.0),
    "publish, 1 % new": Reach("at most", 60.0),
    "gc": Reach("at most", 250.0),
    "diff": Reach("at most", 250.0),
    "status": Reach("at most", 5.0),
    "refilter, 1 % of the shards": Reach("at most", 250.0),
    "validate --quick": Reach("at most", 250.0),
}
TABLE = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("quality", pa.struct([(name, pa.float64()) for name in SCORES])),
        ("phash", pa.string()),
    ]
)
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
        cpu, _ = slope({size: answer["cpu"] for size, answer in found.items()})
        notes = (
            f"{took}: {per_sample * 1e6:.2f} microseconds a sample, {cpu * 1e6:.2f} of CPU time; 100 million by the "
            f"slope: {hundred:.1f} min",
        )
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
    entries = [
        PlannedShard(make_shard([span], 0, digest(context.fingerprint)), 1, plan, n) for n, span in enumerate(spans)
    ]
    ledger.append_plan(plan, entries)
    root = Path(context.storage.path(""))
    for name in ("_commits", "data", "rejected"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for entry in entries:  # without fsync, because writing is not measured
        commit = _write_shard(root, entry)
        (root / "_commits" / f"{entry.shard.id}.json").write_bytes(commit.to_bytes())


def _write_shard(root: Path, entry: PlannedShard) -> Commit:
    """Write the tables of a shard. Returns its commit."""
    (span,) = entry.shard.spans
    noise = np.random.default_rng([entry.plan, entry.position])
    rows: dict[Outcome, list[dict[str, Any]]] = {"kept": [], "rejected": []}
    outcomes = []
    for n, bits in zip(range(span.start, span.stop), noise.bytes(8 * span.rows).hex(" ", 8).split(), strict=True):
        identifier, is_kept = f"{span.relative_path}:{n}/0", n % 20 != 0
        is_dim = n % 20 == 1 and entry.position % 100 == 0
        scores = {
            **dict.fromkeys(SCORES, 0.5),
            "depth_span": 0.9 if is_kept else 0.04,
            "rgb_span": 0.1 if is_dim else 0.5,
        }
        reasons = () if is_kept else ("depth_range: depth spans 0.040, less than 0.1",)
        outcomes.append(SampleOutcome(identifier, 0, n, 0, "kept" if is_kept else "rejected", reasons))
        row = {"id": identifier, "prompt": f"prompt {n}", "quality": scores, "phash": bits}
        rows["kept" if is_kept else "rejected"].append(row if is_kept else {**row, "reasons": list(reasons)})
    stored = []
    for outcome, records in rows.items():
        schema = TABLE if outcome == "kept" else TABLE.append(REASONS)
        data = parquet_bytes(pa.Table.from_pylist(records, schema))
        path = f"{FOLDERS[outcome]}/{entry.shard.id}-{'0' * 16}.parquet"
        (root / path).write_bytes(data)
        stored.append(StoredObject(path, len(data), sha256(data), len(records), outcome))
    created = "2026-01-01T00:00:00+00:00"
    return Commit(entry.shard.id, "0" * 16, tuple(stored), tuple(outcomes), "bench", "host", created, 1.0)


def run_step(step: str, folder: str) -> dict[str, Any]:
    """Take one step in this process. Returns its seconds and the peak memory of the process in bytes."""
    quality = {"filters": [{"kind": "near_duplicate", "max_distance": 2}]} if step == STEPS[-1] else {}
    context = context_of(Path(folder), "joint", 32, quality=quality)
    storage, uri = Storage(context.storage.uri), context.storage.uri
    if step in STEPS[-2:]:
        shutil.rmtree(storage.path("_versions"))
    started, busy = time.perf_counter(), time.process_time()
    if step.startswith("publish"):
        _, is_new = publish(storage, Ledger(storage), context.spec)
        assert is_new == (step != "publish, nothing new")
    elif step == "gc":
        assert not collect_garbage(uri, 0).objects
    elif step == "diff":
        assert compare(uri, 1, 2).added
    elif step == "status":
        assert read_status(uri).is_complete
    elif step in REFILTERS:
        decision = Refilter([f"quality.filters={REFILTERS[step]}"], None)  # without the card, which shows images
        assert publish_decision(storage, Ledger(storage), decision.decide, is_partial)[1]
    else:
        (problem,) = validate(uri, quick=True).problems
        assert problem.startswith("README.md"), problem
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    return {"seconds": seconds, "cpu": cpu, "bytes": peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(run_step(*sys.argv[1:])))
