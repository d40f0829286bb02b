"""Seconds of the search for near-duplicates, extrapolated to 100 million samples, and its peak memory.

A fresh process searches a Parquet file of hashes and reports its time and peak memory. The hashes are drawn, because no
data set of this size is at hand: images of a theme share some low frequencies, some images are near copies of others,
and a few themes (blank or almost blank images) form dense clusters.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.tools.bench.frame import Line, Reach, Settings, Spread, slope
from jobs.tools.bench.local_runs import call_in_process, peak_bytes
from pipelines.dataset.near_duplicates import near_duplicates
from pipelines.store.joins import MEMORY, joins

GOAL = 100_000_000  # samples to extrapolate to
SIZES = (250_000, 500_000, 1_000_000)
CORPUS_SIZES = (5_000_000, 10_000_000)
AT_ONCE = 100_000  # hashes that are drawn at once; few, because a process inherits the peak memory of its parent
THEMES, DENSE_THEMES = 1000, 20
COPIES, DENSE = 0.1, 0.01  # shares of near copies, and of images of dense themes
FLIPPED = 0.03  # share of the bits by which copies and images of dense themes differ from their origin
MEGABYTE = 1_000_000.0


def measure(settings: Settings) -> Iterator[Line]:
    """Yield seconds and memory by a million samples, and seconds of 20,000 samples with max_distance 10."""
    yield from _series(settings, SIZES, 1.0, "all new")
    yield from _series(settings, SIZES, 0.1, "one in ten new")
    count = 2_000 if settings.quick else 20_000
    answer = _search(settings.folder, count, 10, 1.0)
    seconds = Spread.of([answer["seconds"]])
    what = f"{count:,} samples, max_distance 10"
    yield Line(what, "s", seconds, seconds, None, Reach("at most", 2), _work(answer))


def measure_corpus(settings: Settings) -> Iterator[Line]:
    """Yield the same by ten million samples."""
    yield from _series(settings, CORPUS_SIZES, 1.0, "all new")
    yield from _series(settings, CORPUS_SIZES, 0.1, "one in ten new")


def _series(settings: Settings, sizes: Sequence[int], new: float, name: str) -> Iterator[Line]:
    answers = {}
    for size in sizes[:2] if settings.quick else sizes:
        count = size // 100 if settings.quick else size
        answers[count] = _search(settings.folder, count, 4, new)
    seconds = {float(count): answer["seconds"] for count, answer in answers.items()}
    per_sample, start = slope(seconds)
    took = ", ".join(f"{count / 1e6:g} M {value:.1f} s" for count, value in seconds.items())
    needed = ", ".join(f"{count / 1e6:g} M {answer['bytes'] / MEGABYTE:.0f} MB" for count, answer in answers.items())
    largest = max(answers)
    work = _work(answers[largest])
    notes = (f"measured {took}: {per_sample * 1e6:.1f} µs per sample; max_distance 4",)
    last, at_goal = Spread.of([seconds[largest]]), Spread.of([start + per_sample * GOAL])
    what = f"{largest / 1e6:g} M samples, {name}"
    yield Line(f"{what}; figure: at 100 M", "s", last, at_goal, None, Reach("at most", 3600), work, notes)
    notes = (
        f"measured {needed}: it grows until DuckDB's limit of {MEMORY / MEGABYTE:.0f} MB, then tables are spilled",
    )
    peak = Spread.of([answers[largest]["bytes"] / MEGABYTE])
    yield Line(f"{what}: peak memory", "MB", peak, peak, None, Reach("at most", 2000), work, notes)


def _work(answer: dict[str, float]) -> dict[str, int]:
    return {"samples": int(answer["samples"]), "rejected": int(answer["rejected"])}


def _search(folder: Path, count: int, max_distance: int, new: float) -> dict[str, float]:
    path = folder / f"{count}-{new}.parquet"
    if not path.exists():
        _write_samples(path, count, new)
    return call_in_process("near_duplicates", str(path), str(max_distance))


def _write_samples(path: Path, count: int, new: float) -> None:
    """Write samples in the order of the plan; the last ones, a share `new`, are new."""
    schema = pa.schema({"order": pa.int64(), "hash": pa.uint64(), "row": pa.int64(), "is_held": pa.bool_()})
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, count, AT_ONCE):
            order = np.arange(first, min(first + AT_ONCE, count))
            columns = [order, _hashes(len(order), first), order, order < count * (1 - new)]
            writer.write_table(pa.table(columns, schema))


def _hashes(count: int, seed: int) -> NDArray[np.uint64]:
    """Draw hashes (count). Near copies have their origin among the same hashes, dense themes are those of all."""
    random, themes = np.random.default_rng(seed), np.random.default_rng(0)
    odds = 1 / (1 + np.exp(-themes.normal(0, 1.5, (THEMES, 64))))
    hashes = _packed(random.random((count, 64), np.float32) < odds[random.integers(0, THEMES, count)])
    centres = themes.integers(0, 1 << 64, DENSE_THEMES, np.uint64)
    kind = random.random(count)
    dense, copies = np.flatnonzero(kind < DENSE), np.flatnonzero((kind >= DENSE) & (kind < DENSE + COPIES))
    hashes[dense] = centres[random.integers(0, DENSE_THEMES, len(dense))]
    hashes[copies] = hashes[random.integers(0, count, len(copies))]
    changed = np.concatenate([dense, copies])
    hashes[changed] ^= _packed(random.random((len(changed), 64), np.float32) < FLIPPED)
    return hashes


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return bits (n, 64) as numbers (n)."""
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def search_here(path: Path, max_distance: int) -> dict[str, float]:
    """Search in this process; return seconds, peak bytes, samples and rejected samples."""
    started = time.perf_counter()
    with joins() as connection:
        samples = f"read_parquet('{path}')"
        found = near_duplicates(connection, samples, max_distance, same_row_is_no_duplicate=False)
        rejected = len(found)
        seconds = time.perf_counter() - started
    count = pq.read_metadata(path).num_rows
    return {"samples": count, "rejected": rejected, "seconds": seconds, "bytes": peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(search_here(Path(sys.argv[1]), int(sys.argv[2]))))
