"""The engine's benches: each runs every step at the smallest size."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jobs.tools.bench import BENCHES, finish
from jobs.tools.bench.frame import Settings, check_same_work
from jobs.tools.bench.near_duplicates import _write_samples, search_here
from jobs.tools.bench.plan import KINDS, _write_rows, plan_here
from jobs.tools.bench.resume import PENDING, _write_job, read_pending
from jobs.tools.bench.running import run
from jobs.tools.bench.tiny_job import digest_of
from jointdit.errors import PermanentError
from pipelines.ledger import resume
from pipelines.ledger.resume import ROLL_UP
from pipelines.store.storage import Storage

ENGINE = (
    "pipeline",
    "gpu-like",
    "raydata",
    "resume",
    "resume-million",
    "plan",
    "dispatch",
    "dispatch-corpus",
    "driver",
    "near-duplicate",
    "near-duplicate-corpus",
    "publish",
    "publish-corpus",
)


@pytest.mark.slow  # each starts Ray, or several processes
@pytest.mark.filterwarnings(r"ignore:`\w+` is deprecated:DeprecationWarning")  # raised by Ray Data
@pytest.mark.parametrize("name", ENGINE)
def test_a_bench_of_the_engine_runs(name):
    result = run(name, quick=True)
    assert result.quick
    assert all(line.work for line in result.lines)
    if name != "driver":  # extrapolates from two small jobs, so noise can make a figure negative
        assert all(line.ours.median > 0 for line in result.lines)
    assert json.loads(json.dumps(result.to_json()))["name"] == name


def test_finish_counts_the_bytes_that_it_writes(tmp_path):
    (line,) = finish.measure(Settings(tmp_path, BENCHES["finish"].seconds, quick=True))
    assert line.work["rows"] == 2
    tables = list(tmp_path.glob("*/out/data/*.parquet"))
    assert sum(path.stat().st_size for path in tables) == line.work["bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_has_all_rows(tmp_path, kind):
    _write_rows(tmp_path / "rows", kind, 2500, 1000)
    answer = plan_here(kind, tmp_path)
    assert (answer["rows"], answer["shards"]) == (2500, 0 if kind == "ids" else 10)
    assert answer["seconds"] > 0


def test_near_duplicates_are_sought_among_new_samples(tmp_path):
    _write_samples(tmp_path / "all.parquet", 3000, 1.0)
    _write_samples(tmp_path / "some.parquet", 3000, 0.1)
    everything, some = search_here(tmp_path / "all.parquet", 4), search_here(tmp_path / "some.parquet", 4)
    assert everything["samples"] == some["samples"] == 3000
    assert 200 < everything["rejected"] < 400  # about one in ten is a copy
    assert 0 < some["rejected"] < 60
    assert everything["seconds"] > 0


def test_pending_shards_are_the_same_with_a_roll_up(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "ROLL_UP_FROM", 100)
    monkeypatch.setattr(resume, "LISTED_AT_ONCE", 1)
    storage = Storage(str(tmp_path / "job"))
    _write_job(storage, 300, samples=1)
    first = read_pending(storage.uri)
    assert storage.exists(ROLL_UP)
    (tmp_path / "job" / "_commits").rename(tmp_path / "gone")  # the roll-up makes listing them unnecessary
    second = read_pending(storage.uri)
    assert first["pending"] == second["pending"] == list(range(300 - PENDING, 300))


def test_one_different_pixel_is_unequal_work():
    image, other = np.zeros((2, 16, 16, 3), np.uint8)
    other[3, 4, 1] = 1
    works = [{"rows": 1, "pixels": digest_of([[pixels]])} for pixels in (image, other)]
    with pytest.raises(PermanentError, match="pixels"):
        check_same_work(*works)
