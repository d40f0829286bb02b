"""Rows that fail: the run quarantines exactly these rows, on a real Ray with the stand-in model."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from jointdit.errors import InputError, PermanentError
from pipelines.dataset.validation.validate import validate
from pipelines.engine import chains
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest, read_outcomes
from pipelines.store.storage import Storage
from tests import stand_in

# Ray workers cannot import from tests/, so functions and classes of this file are pickled by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def outcomes_by_id(output: str) -> dict[str, str]:
    storage = Storage(output)
    table = read_outcomes(storage, read_latest(storage))
    return dict(zip(table["id"].to_pylist(), table["outcome"].to_pylist(), strict=True))


def test_bad_rows_are_quarantined_alone(run_stand_in, make_spec) -> None:
    spec = make_spec(["fine", "", "NAN", "fine", "RAISE", "fine"])
    summary = run_stand_in(spec)
    assert summary.counts_now == {"kept": 3, "rejected": 0, "quarantined": 3}
    assert [outcome[0] for outcome in outcomes_by_id(spec.output.uri).values()] == ["k", "q", "q", "k", "q", "k"]
    assert validate(spec.output.uri).problems == []


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_isolated_and_quarantined(run_stand_in, make_spec) -> None:
    prompts = [f"fine {n}" for n in range(12)]
    prompts[5] = "KILL"
    spec = make_spec(prompts, model={"batch_size": 4}, retries={"crash": 2})
    summary = run_stand_in(spec)
    assert summary.version.counts == {"kept": 11, "rejected": 0, "quarantined": 1}
    assert outcomes_by_id(spec.output.uri)["prompts.txt:5/0"] == "quarantined"
    ledger = Ledger(Storage(spec.output.uri))
    crashes = [record for shard in ledger.shards_with_crashes() for record in ledger.crashes(shard)]
    assert len(crashes) >= 2 + 2  # the crash budget, then twice alone
    assert [record["samples"] for record in crashes if record["alone"]] == [["prompts.txt:5/0"]] * 2
    assert validate(spec.output.uri).problems == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_row_that_hangs_its_worker_is_quarantined(run_stand_in, make_spec) -> None:
    prompts = ["fine", "fine", "HANG", "fine"]
    spec = make_spec(prompts, retries={"crash": 1}, resources={"stall_seconds": 3.0})
    summary = run_stand_in(spec)
    assert summary.version.counts == {"kept": 3, "rejected": 0, "quarantined": 1}
    assert outcomes_by_id(spec.output.uri)["prompts.txt:2/0"] == "quarantined"


def read_killed_by_row_5(context, entry, isolation):
    rows = {(n, row) for n, span in enumerate(entry.shard.spans) for row in range(span.start, span.stop)}
    if 5 in {row for _, row in rows - isolation.poison_rows}:
        os.kill(os.getpid(), signal.SIGKILL)
    return chains._read(context, entry, isolation)


def try_read_killed_by_row_5(context, entry, span, start, stop):
    if start <= 5 < stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return chains._try_read(context, entry, span, start, stop)


def test_a_row_that_kills_its_reader_is_isolated_and_quarantined(
    run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec([f"fine {n}" for n in range(12)], retries={"crash": 2})
    with monkeypatch.context() as patch:
        patch.setattr(chains, "_read", read_killed_by_row_5)
        patch.setattr(chains, "_try_read", try_read_killed_by_row_5)
        summary = run_stand_in(spec, stand_in.RecordingWorker)
    assert summary.version.counts == {"kept": 11, "rejected": 0, "quarantined": 1}
    assert outcomes_by_id(spec.output.uri)["prompts.txt:5/0"] == "quarantined"
    assert len(stand_in.read_calls(spec)) == 11, "each other row is generated once"
    assert validate(spec.output.uri).problems == []


class Deadly(np.ndarray):
    """A map that kills the process that computes its percentiles, like a crash in a C library."""

    def __array_function__(self, function, types, args, kwargs):
        if function is np.percentile:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__array_function__(function, types, args, kwargs)


class DeadlyResults(stand_in.RecordingWorker):
    """The results of some prompts kill the process that scores them."""

    def generate(self, part):
        results, summary = super().generate(part)
        for result in results:
            if "SEGFAULT" in result.sample.row.prompt:
                result.disparity = result.disparity.view(Deadly)
        return results, summary


def test_a_sample_that_kills_its_finish_task_is_isolated_and_quarantined(run_stand_in, make_spec) -> None:
    prompts = [f"fine {n}" for n in range(8)]
    prompts[2] = "SEGFAULT"
    spec = make_spec(prompts, retries={"crash": 1})
    summary = run_stand_in(spec, DeadlyResults)
    assert summary.version.counts == {"kept": 7, "rejected": 0, "quarantined": 1}
    assert outcomes_by_id(spec.output.uri)["prompts.txt:2/0"] == "quarantined"
    assert len(stand_in.read_calls(spec)) == 8, "no sample is generated again"
    assert validate(spec.output.uri).problems == []


def test_too_many_quarantined_samples_stop_the_run_and_commits_stay(run_stand_in, make_spec) -> None:
    quality = {"max_quarantined_fraction": 0.2}
    prompts = ["fine", "fine", "fine", "fine", "", "", "", "", *(["fine"] * 4)]
    spec = make_spec(prompts, quality=quality, resources={"shards_in_flight": 1})
    with pytest.raises(
        PermanentError, match=r"4 of the 12 samples of this run are quarantined, more than quality.max_"
    ):
        run_stand_in(spec)
    ledger = Ledger(Storage(spec.output.uri))
    assert len(ledger.committed()) == 2
    assert read_latest(ledger.storage) is None
    generous = make_spec(prompts, quality={"max_quarantined_fraction": 1.0})
    summary = run_stand_in(generous)
    assert summary.version.counts == {"kept": 8, "rejected": 0, "quarantined": 4}


def test_rejects_are_regenerated_with_new_samples(run_stand_in, make_spec) -> None:
    spec = make_spec(["fine", "FLAT", "fine"], quality={"filters": [{"kind": "depth_range"}], "regenerate": 2})
    summary = run_stand_in(spec)
    assert summary.version.counts == {"kept": 2, "rejected": 3, "quarantined": 0}
    assert [i for i, o in outcomes_by_id(spec.output.uri).items() if o == "rejected"] == [
        f"prompts.txt:1/{n}" for n in range(3)
    ]
    again = run_stand_in(spec)
    assert (again.is_new, again.samples_now) == (False, 0)


def test_bad_input_writes_nothing(run_stand_in, make_spec, tmp_path: Path) -> None:
    spec = make_spec([])
    with pytest.raises(InputError, match="has no rows"):
        run_stand_in(spec)
    assert not (tmp_path / "out").exists()


def test_new_inputs_are_added_to_a_finished_job(run_stand_in, make_spec, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one\ntwo\n")
    spec = make_spec(input={"uri": str(tmp_path / "in")})
    assert run_stand_in(spec).version.number == 1
    (tmp_path / "in" / "b.txt").write_text("three\n")
    second = run_stand_in(spec)
    assert (second.version.number, second.samples_now, second.version.counts["kept"]) == (2, 1, 3)
