"""Each bench runs, with as little as it takes: every step of it, and no figure means anything."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jobs.tools.bench import BENCHES, finish
from jobs.tools.bench.frame import Settings, check_same_work
from jobs.tools.bench.plan import KINDS, _write_rows, plan_here
from jobs.tools.bench.resume import LEFT, _write_job, measure_here
from jobs.tools.bench.running import run
from jobs.tools.bench.tiny_job import digest_of
from jointdit.errors import PermanentError
from pipelines.ledger import resume
from pipelines.ledger.resume import ROLL_UP
from pipelines.store.storage import Storage

ENGINE = ("pipeline", "gpu-like", "raydata", "resume", "resume-million", "plan", "driver")


@pytest.mark.slow  # each starts Ray, or several processes
@pytest.mark.filterwarnings("ignore:`use_push_based_shuffle` is deprecated:DeprecationWarning")  # Ray Data's own
@pytest.mark.parametrize("name", ENGINE)
def test_a_bench_of_the_engine_runs(name):
    result = run(name, quick=True)
    assert result.quick
    assert all(line.ours.median > 0 and line.work for line in result.lines)
    assert json.loads(json.dumps(result.to_json()))["name"] == name


def test_finish_writes_what_it_counts(tmp_path):
    (line,) = finish.measure(Settings(tmp_path, BENCHES["finish"].seconds, quick=True))
    assert line.work["rows"] == 2
    tables = list(tmp_path.glob("*/out/data/*.parquet"))
    assert sum(path.stat().st_size for path in tables) == line.work["bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_of_written_rows_has_them_all(tmp_path, kind):
    _write_rows(tmp_path / "rows", kind, 2500, 1000)
    told = plan_here(kind, tmp_path)
    assert (told["rows"], told["shards"]) == (2500, 0 if kind == "ids" else 10)
    assert told["seconds"] > 0


def test_two_looks_at_a_ledger_find_the_same_shards_left(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "ROLL_UP_FROM", 100)
    monkeypatch.setattr(resume, "LISTED_AT_ONCE", 1)
    storage = Storage(str(tmp_path / "job"))
    _write_job(storage, 300, samples=1)
    first = measure_here(storage.uri)
    assert storage.exists(ROLL_UP)
    (tmp_path / "job" / "_commits").rename(tmp_path / "gone")  # the second does not list them
    second = measure_here(storage.uri)
    assert first["left"] == second["left"] == list(range(300 - LEFT, 300))


def test_one_pixel_is_another_output():
    image, other = np.zeros((2, 16, 16, 3), np.uint8)
    other[3, 4, 1] = 1
    works = [{"rows": 1, "pixels": digest_of([[each]])} for each in (image, other)]
    with pytest.raises(PermanentError, match="pixels"):
        check_same_work(*works)
