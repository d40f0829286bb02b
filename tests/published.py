"""Published versions without a model: samples with known pixels, depth, scores and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.ledger.entries import FOLDERS, OUTCOMES, Outcome, sha256
from pipelines.ledger.segments import VersionFile
from pipelines.ledger.versions import Version, sizes_of
from pipelines.quality import SCORES
from pipelines.records import Row, Sample, SampleResult
from pipelines.spec.job import JobSpec, load_spec
from pipelines.stages.sinks.parquet import encode_samples, table_bytes
from pipelines.store.storage import Storage

FIRST, SECOND = list(SCORES)[:2]  # the scores that are set here; the others are null


def job(**output: Any) -> JobSpec:
    return load_spec({"task": "joint", "name": "rooms", "input": {"uri": "in"}, "output": {"uri": "out", **output}})


def slope(number: int, height: int = 40, width: int = 60) -> SampleResult:
    """Return a sample with a slope up to (number % 50 + 50) / 100; colours and FIRST depend on the number."""
    down, right = np.mgrid[0:height, 0:width].astype(np.float32)
    top = np.float32((number % 50 + 50) / 100)
    disparity = (down / (height - 1) * 0.8 + right / (width - 1) * 0.2) * top
    rgb = np.stack([down * 255 / height, right * 255 / width, np.full_like(down, number * 37 % 256)], axis=-1)
    row = Row(f"row-{number}", "in/rows.txt", number, prompt=f"prompt number {number}")
    sample = Sample(f"row-{number}/0", row, 0, 0, seed=number)
    made = SampleResult(sample, rgb=rgb.astype(np.uint8), disparity=disparity)
    made.scores = {FIRST: number / 4, SECOND: -float(number % 7)}
    return made


def rejected(number: int, *reasons: str) -> SampleResult:
    sample = slope(number)
    sample.reasons = list(reasons)
    return sample


def quarantined(number: int, error: str, traceback: str = "") -> SampleResult:
    sample = slope(number)
    sample.rgb, sample.disparity, sample.scores, sample.error, sample.traceback = None, None, {}, error, traceback
    return sample


def publish_tables(
    storage: Storage, tables: Sequence[tuple[str, Outcome, list[SampleResult]]], number: int = 1, **output: Any
) -> Version:
    """Write tables, each (shard, outcome, samples); return the version with these tables."""
    spec = job(**output)
    files = []
    for shard, outcome, results in tables:
        data = table_bytes(encode_samples(results, spec, outcome, {"row-0/0": "pointclouds/a b/00000.ply"}))
        path = f"{FOLDERS[outcome]}/{shard}-a.parquet"
        storage.write_bytes(path, data)
        files.append(VersionFile(path, outcome, len(results), len(data), sha256(data), shard))
    counts = {outcome: sum(file.rows for file in files if file.outcome == outcome) for outcome in OUTCOMES}
    return Version(
        number=number,
        counts=counts,
        listed=tuple(files),
        sizes=sizes_of(files),
        superseded=0,
        reasons={},
        plans=(1,),
        created="2026-01-02T03:04:05+00:00",
        code="0.1.0",
        recorded_spec=spec.as_given(),
    )
