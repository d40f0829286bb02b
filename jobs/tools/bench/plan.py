"""Rows/s and memory of planning 100 million rows, extrapolated from smaller plans.

A fresh process plans each size and reports its time and peak memory. As in `jointdit run`, it lists files, reads
footers or counts lines, cuts shards and writes the plan file. The search for duplicate ids is measured separately.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import call_in_process, context_of, peak_bytes, spec_of
from pipelines.ledger.ledger import Ledger
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.plan.propose import extend_plan, propose
from pipelines.stages.readers import list_files

GOAL = 100_000_000  # rows to extrapolate to
FILE_ROWS = 1_000_000
KINDS = ("parquet", "jsonl", "ids")
SIZES = {"parquet": (5, 10, 20), "jsonl": (1, 2, 3), "ids": (8, 16)}  # million rows; up to 8, memory for ids grows
MEGABYTE = 1_000_000.0


def measure(settings: Settings) -> Iterator[Line]:
    """Yield rate and memory of plans from Parquet and jsonl, and of the search for duplicate ids."""
    for kind in KINDS:
        scale = 10_000 if settings.quick else FILE_ROWS
        sizes = [size * scale for size in SIZES[kind]][: 2 if settings.quick else None]
        seconds: dict[float, float] = {}
        memory: dict[float, float] = {}
        shards = 0
        for rows in sizes:
            folder = settings.folder / f"{kind}-{rows}"
            _write_rows(folder / "rows", kind, rows, min(scale, rows))
            answer = call_in_process("plan", kind, str(folder))
            assert answer["rows"] == rows, f"{answer['rows']} of {rows} rows were read"
            seconds[rows], memory[rows], shards = answer["seconds"], answer["bytes"] / MEGABYTE, answer["shards"]
        yield from _lines(kind, seconds, memory, shards)


def _lines(kind: str, seconds: dict[float, float], memory: dict[float, float], shards: int) -> Iterator[Line]:
    what = {"parquet": "plan from Parquet", "jsonl": "plan from jsonl", "ids": "duplicate ids, Parquet"}[kind]
    per_row, start = slope(seconds)
    growth, bottom = slope(memory)
    largest = max(seconds)
    rate = Spread.of([largest / seconds[largest]])
    at_goal = Spread.of([bottom + growth * GOAL])
    took = ", ".join(f"{rows / 1e6:g} M {value:.2f} s" for rows, value in seconds.items())
    needed = ", ".join(f"{rows / 1e6:g} M {value:.0f} MB" for rows, value in memory.items())
    notes = (
        f"measured {took}: the slope is {per_row * 1e9:.0f} ns per row after {start:.2f} s, so {GOAL / 1e6:g} M rows "
        f"take {start + per_row * GOAL:.0f} s; the figure is that of the largest plan",
    )
    reach = Reach("at least", 1e6) if kind == "parquet" else None
    work = {"rows": int(largest), "shards": shards}
    yield Line(what, "rows/s", rate, rate, None, reach, work, notes)
    notes = (f"measured {needed}: {growth * MEGABYTE:.1f} bytes per row",)
    yield Line(f"{what}: memory at 100 M rows", "MB", at_goal, at_goal, None, Reach("at most", 1000), work, notes)


def _write_rows(folder: Path, kind: str, rows: int, file_rows: int) -> None:
    """Write files of `file_rows` rows each, with few distinct prompts and distinct ids."""
    folder.mkdir(parents=True)
    texts = pa.array([f"a prompt of some words, number {number}" for number in range(1000)])
    for first in range(0, rows, file_rows):
        numbers = np.arange(first, min(first + file_rows, rows))
        name = folder / f"{first:012d}"
        if kind == "jsonl":
            with name.with_suffix(".jsonl").open("w") as file:
                file.writelines(f'{{"prompt": "a prompt of some words, number {number}"}}\n' for number in numbers)
            continue
        columns = {"prompt": pa.DictionaryArray.from_arrays(pa.array(numbers % 1000, pa.int32()), texts)}
        if kind == "ids":
            ids = pa.array(numbers).cast(pa.string())
            columns = {"id": pa.compute.binary_join_element_wise("corpus/", ids, ""), **columns}
        table = pa.table({key: value.cast(pa.string()) for key, value in columns.items()})
        pq.write_table(table, name.with_suffix(".parquet"), row_group_size=100_000)


def plan_here(kind: str, folder: Path) -> dict[str, float]:
    """Plan, or search for duplicate ids, in this process; return seconds, peak bytes, rows and shards."""
    context = context_of(folder, "joint", 512)
    spec = spec_of(folder, "joint", folder / "rows")
    started = time.perf_counter()
    if kind == "ids":
        files = list_files(spec.input, "joint")
        assert find_duplicate_ids(files, spec.input) == []
        rows, shards = sum(pq.read_metadata(file.uri).num_rows for file in files), 0
    else:
        ledger = Ledger(context.storage)
        planned = extend_plan(spec, context.fingerprint, ledger, propose(spec, context.fingerprint, ledger)).shards
        rows, shards = sum(shard.rows for shard in planned), len(planned)
    seconds = time.perf_counter() - started
    return {"rows": rows, "shards": shards, "seconds": seconds, "bytes": peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(plan_here(sys.argv[1], Path(sys.argv[2]))))
