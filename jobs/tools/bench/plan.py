"""Rows/s and memory of a plan of 100 million prompt rows: measured at some sizes, extrapolated by the slope.

Each size is planned in a process of its own, which says its time and its peak memory: listing, footers or lines
counted, shards cut, and the plan file written, as `jointdit run` does it. The search for duplicate ids is timed apart.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import context_of, spec_of
from pipelines.ledger.ledger import Ledger
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.plan.propose import extend_plan, propose
from pipelines.stages.readers import list_files

GOAL = 100_000_000  # rows
FILE_ROWS = 1_000_000
KINDS = ("parquet", "jsonl", "ids")
SIZES = {"parquet": (5, 10, 20), "jsonl": (1, 2, 3), "ids": (2, 4, 8)}  # million rows
MEGABYTE = 1_000_000.0


def measure(settings: Settings) -> Iterator[Line]:
    """Rate and memory of plans from Parquet and jsonl, then of the search for duplicate ids."""
    for kind in KINDS:
        scale = 10_000 if settings.quick else FILE_ROWS
        sizes = [size * scale for size in SIZES[kind]][: 2 if settings.quick else None]
        seconds: dict[float, float] = {}
        memory: dict[float, float] = {}
        shards = 0
        for rows in sizes:
            folder = settings.folder / f"{kind}-{rows}"
            _write_rows(folder / "rows", kind, rows, min(scale, rows))
            command = [sys.executable, "-m", "jobs.tools.bench.plan", kind, str(folder)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            told = json.loads(answer.stdout)
            assert told["rows"] == rows, f"{told['rows']} rows of {rows} were looked at"
            seconds[rows], memory[rows], shards = told["seconds"], told["bytes"] / MEGABYTE, told["shards"]
        yield from _lines(kind, seconds, memory, shards)


def _lines(kind: str, seconds: dict[float, float], memory: dict[float, float], shards: int) -> Iterator[Line]:
    what = {"parquet": "plan from Parquet", "jsonl": "plan from jsonl", "ids": "duplicate ids, Parquet"}[kind]
    a_row, start = slope(seconds)
    growth, bottom = slope(memory)
    largest = max(seconds)
    rate = Spread.of([largest / seconds[largest]])
    at_goal = Spread.of([bottom + growth * GOAL])
    took = ", ".join(f"{rows / 1e6:g} M {each:.2f} s" for rows, each in seconds.items())
    needed = ", ".join(f"{rows / 1e6:g} M {each:.0f} MB" for rows, each in memory.items())
    notes = (
        f"measured {took}: by the slope {a_row * 1e9:.0f} ns a row after {start:.2f} s, so {GOAL / 1e6:g} M rows take "
        f"{start + a_row * GOAL:.0f} s; the figure is that of the largest",
    )
    reach = Reach("at least", 1e6) if kind == "parquet" else None
    work = {"rows": int(largest), "shards": shards}
    yield Line(what, "rows/s", rate, rate, None, reach, work, notes)
    notes = (f"measured {needed}: {growth * MEGABYTE:.1f} bytes a row",)
    yield Line(f"{what}: memory at 100 M rows", "MB", at_goal, at_goal, None, Reach("at most", 1000), work, notes)


def _write_rows(folder: Path, kind: str, rows: int, file_rows: int) -> None:
    """Files of so many rows each; the prompts are few, the ids all different."""
    folder.mkdir(parents=True)
    few = pa.array([f"a prompt of some words, number {number}" for number in range(1000)])
    for first in range(0, rows, file_rows):
        numbers = np.arange(first, min(first + file_rows, rows))
        name = folder / f"{first:012d}"
        if kind == "jsonl":
            with name.with_suffix(".jsonl").open("w") as file:
                file.writelines(f'{{"prompt": "a prompt of some words, number {number}"}}\n' for number in numbers)
            continue
        columns = {"prompt": pa.DictionaryArray.from_arrays(pa.array(numbers % 1000, pa.int32()), few)}
        if kind == "ids":
            texts = pa.array(numbers).cast(pa.string())
            columns = {"id": pa.compute.binary_join_element_wise("corpus/", texts, ""), **columns}
        table = pa.table({key: value.cast(pa.string()) for key, value in columns.items()})
        pq.write_table(table, name.with_suffix(".parquet"), row_group_size=100_000)


def plan_here(kind: str, folder: Path) -> dict[str, float]:
    """Plan, or look for duplicate ids, in this process; seconds, peak memory, and what was done."""
    context = context_of(folder, "joint", 512)
    spec = spec_of(folder, "joint", folder / "rows")
    started = time.perf_counter()
    if kind == "ids":
        files = list_files(spec.input, "joint")
        assert find_duplicate_ids(files, spec.input) == []
        rows, shards = sum(pq.read_metadata(file.uri).num_rows for file in files), 0
    else:
        ledger = Ledger(context.storage)
        made = extend_plan(spec, context.fingerprint, ledger, propose(spec, context.fingerprint, ledger)).shards
        rows, shards = sum(shard.rows for shard in made), len(made)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"rows": rows, "shards": shards, "seconds": seconds, "bytes": peak}


if __name__ == "__main__":
    print(json.dumps(plan_here(sys.argv[1], Path(sys.argv[2]))))
