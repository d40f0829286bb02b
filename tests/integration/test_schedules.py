"""Scheduled runs on a real Ray: overlapping runs, new input, and limits that stop after a shard."""

from __future__ import annotations

import math
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest
import ray
import yaml

from jobs.cli import main
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.lease import read_leases
from pipelines.run.job import run_job
from pipelines.store.storage import Storage
from tests.stand_in import RecordingWorker, SlowWorker, read_calls


class GatedWorker(RecordingWorker):
    """Waits after a part until a file beside the output exists."""

    def generate(self, part):
        result = super().generate(part)
        while not Path(self.context.spec.output.uri + ".go").exists():
            threading.Event().wait(0.05)
        return result


@pytest.fixture(autouse=True)
def _pickle_by_value() -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_of_two_overlapping_runs_one_works_and_the_next_run_adds_new_input(
    run_stand_in, make_spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("".join(f"prompt {n}\n" for n in range(12)))
    spec = make_spec(input={"uri": str(tmp_path / "in")}, output={"retain_versions": 2})
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec.as_given()))
    storage, summaries = Storage(spec.output.uri), []
    first = threading.Thread(target=lambda: summaries.append(run_stand_in(spec, GatedWorker)))
    first.start()
    try:
        while not (read_leases(storage) and read_calls(spec)):
            assert first.is_alive()
            first.join(0.02)
        assert main(["run", str(tmp_path / "spec.yaml"), "--if-idle"]) == 0
        assert "has an active run, process" in capsys.readouterr().out
        assert first.is_alive(), "it left while the other one was at work"
    finally:
        Path(spec.output.uri + ".go").touch()
        first.join()
    assert (summaries[0].version.number, summaries[0].version.counts["kept"]) == (1, 12)
    assert len(read_calls(spec)) == 12, "the second run generated nothing"
    (tmp_path / "in" / "b.txt").write_text("new\n")
    second = run_stand_in(spec, RecordingWorker)
    assert (second.version.number, second.samples_now) == (2, 1)
    assert [sample for _, _, sample in read_calls(spec)[12:]] == ["b.txt:0/0"]


@pytest.mark.slow
def test_a_budget_of_rows_stops_a_run_and_the_next_run_resumes(run_stand_in, make_spec) -> None:
    prompts = [f"prompt {n}" for n in range(10)]
    spec = make_spec(prompts, budget={"max_rows": 5})
    stopped = run_stand_in(spec, RecordingWorker)
    assert (stopped.version, stopped.samples_now) == (None, 8), "whole shards of four"
    assert (stopped.stopped.reason, stopped.stopped.shards, stopped.stopped.samples) == (
        "budget.max_rows 5 is reached",
        1,
        2,
    )
    assert stopped.usage.held_seconds > stopped.usage.busy_seconds > 0
    rest = run_stand_in(spec, RecordingWorker)
    assert (rest.version.counts["kept"], rest.samples_now, rest.stopped) == (10, 2, None)
    assert len(read_calls(spec)) == 10


@pytest.mark.slow
def test_a_run_stops_at_its_time_after_the_shards_that_it_began(ray_cluster: None, make_spec) -> None:
    spec = make_spec([f"prompt {n}" for n in range(40)], output={"shard_rows": 2})

    class OnceAtWork(datetime):
        """A time that is reached when the worker has begun."""

        def timestamp(self) -> float:
            return 0.0 if read_calls(spec) else math.inf

    stopped = run_job(spec, until=OnceAtWork(2026, 11, 26, 6), worker_class=SlowWorker)
    assert stopped.stopped.reason == "it is 06:00"
    assert 2 <= stopped.samples_now < 40
    assert stopped.stopped.samples == 40 - stopped.samples_now
    made = len(read_calls(spec))
    assert made - stopped.samples_now <= 4, "at most the queued samples"
    rest = run_job(spec, worker_class=SlowWorker)
    assert (rest.version.counts["kept"], rest.committed_before) == (40, stopped.committed_now)
    assert validate(spec.output.uri).problems == []
