"""Each kind of fault on a real Ray, with the stand-in for the weights: what it costs, and what it may not touch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import ray

from jointdit.errors import InputError, ModelError, PermanentError
from pipelines.ledger import Ledger
from pipelines.publish import read_latest, read_outcomes
from pipelines.storage import Storage
from pipelines.validate import validate
from tests import stand_in


def outcome_of(output: str) -> dict[str, str]:
    storage = Storage(output)
    table = read_outcomes(storage, read_latest(storage))
    return dict(zip(table["id"].to_pylist(), table["outcome"].to_pylist(), strict=True))


@pytest.mark.timeout(120)
def test_bad_rows_are_quarantined_alone(run_stand_in, make_spec) -> None:
    spec = make_spec(["fine", "", "NAN", "fine", "RAISE", "fine"])
    summary = run_stand_in(spec)
    assert summary.counts_now == {"kept": 3, "rejected": 0, "quarantined": 3}
    assert [outcome[0] for outcome in outcome_of(spec.output.uri).values()] == ["k", "q", "q", "k", "q", "k"]
    assert validate(spec.output.uri).problems == []


@pytest.mark.timeout(180)
def test_a_row_that_kills_its_worker_is_found_and_only_it_is_quarantined(run_stand_in, make_spec) -> None:
    prompts = [f"fine {n}" for n in range(12)]
    prompts[5] = "KILL"
    spec = make_spec(prompts, model={"batch_size": 4}, retries={"crash": 2})
    summary = run_stand_in(spec)
    assert summary.version.counts == {"kept": 11, "rejected": 0, "quarantined": 1}
    assert outcome_of(spec.output.uri)["prompts.txt:5/0"] == "quarantined"
    ledger = Ledger(Storage(spec.output.uri))
    crashes = [record for shard in ledger.shards_with_crashes() for record in ledger.crashes(shard)]
    assert len(crashes) >= 2 + 2  # its budget, and twice alone
    assert [record["samples"] for record in crashes if record["alone"]] == [["prompts.txt:5/0"]] * 2
    assert validate(spec.output.uri).problems == []


class Doomed(stand_in.StandInWorker):
    """Dies once a machine: the first batch of all takes the process down, whatever is in it."""

    marker = ""

    def generate(self, part):
        try:
            os.close(os.open(self.context.spec.output.uri + ".died", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().generate(part)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(120)
def test_a_worker_that_dies_is_replaced_and_its_shards_go_again(run_stand_in, make_spec) -> None:
    spec = make_spec([f"fine {n}" for n in range(16)])
    summary = run_stand_in(spec, Doomed)
    assert summary.version.counts == {"kept": 16, "rejected": 0, "quarantined": 0}
    assert os.path.exists(spec.output.uri + ".died")
    assert (
        sum(
            len(Ledger(Storage(spec.output.uri)).crashes(s))
            for s in Ledger(Storage(spec.output.uri)).shards_with_crashes()
        )
        == 1
    )
    assert validate(spec.output.uri).problems == []


@pytest.mark.timeout(120)
def test_a_hung_worker_is_a_dead_worker(run_stand_in, make_spec) -> None:
    prompts = ["fine", "fine", "HANG", "fine"]
    spec = make_spec(prompts, retries={"crash": 1}, resources={"stall_seconds": 3.0})
    summary = run_stand_in(spec)
    assert summary.version.counts == {"kept": 3, "rejected": 0, "quarantined": 1}
    assert outcome_of(spec.output.uri)["prompts.txt:2/0"] == "quarantined"


@pytest.mark.timeout(120)
def test_workers_that_never_come_up_stop_the_run(run_stand_in, make_spec) -> None:
    spec = make_spec(["fine"])
    with pytest.raises(ModelError, match="3 workers in a row failed to start"):
        run_stand_in(spec, stand_in.DyingAtStart)
    assert Ledger(Storage(spec.output.uri)).committed() == set()


class NoSuchModel(stand_in.StandInWorker):
    """A permanent fault at the start."""

    def load(self):
        raise ModelError("model.name x has no weights: give a checkpoint.")


@pytest.mark.timeout(120)
def test_a_permanent_fault_stops_at_once_with_its_sentence(run_stand_in, make_spec) -> None:
    with pytest.raises(ModelError, match=r"^model.name x has no weights: give a checkpoint\.$"):
        run_stand_in(make_spec(["fine"]), NoSuchModel)


@pytest.mark.timeout(120)
def test_too_many_quarantined_stop_the_run_and_what_is_committed_stays(run_stand_in, make_spec) -> None:
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


class FlakyStore(Storage):
    """A store whose first tables cannot be written."""

    def write_bytes(self, name: str, data: bytes) -> None:
        marker = Path(self.uri + ".failures")
        failures = len(marker.read_bytes()) if marker.exists() else 0
        if name.startswith("data/") and failures < 2:
            marker.write_bytes(b"x" * (failures + 1))
            from jointdit.errors import TransientError

            raise TransientError("the store did not answer as it should (SlowDown).")
        super().write_bytes(name, data)


@pytest.mark.timeout(120)
def test_a_store_that_is_throttled_costs_a_retry(run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import pipelines.run

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(pipelines.run, "Storage", FlakyStore)
    spec = make_spec(["fine", "fine"], output={"shard_rows": 1})
    assert run_stand_in(spec).version.counts["kept"] == 2
    assert Path(spec.output.uri + ".failures").read_bytes() == b"xx"
    assert validate(spec.output.uri).problems == []


@pytest.mark.timeout(120)
def test_a_spent_budget_stops_the_run(run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import pipelines.run

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(pipelines.run, "Storage", FlakyStore)
    with pytest.raises(PermanentError, match=r"met 1 infrastructure faults, more than retries.infrastructure 0"):
        run_stand_in(make_spec(["fine"], retries={"infrastructure": 0}))


@pytest.mark.timeout(120)
def test_rejects_are_regenerated_with_new_samples(run_stand_in, make_spec) -> None:
    spec = make_spec(["fine", "FLAT", "fine"], quality={"filters": [{"kind": "depth_range"}], "regenerate": 2})
    summary = run_stand_in(spec)
    assert summary.version.counts == {"kept": 2, "rejected": 3, "quarantined": 0}
    assert [i for i, o in outcome_of(spec.output.uri).items() if o == "rejected"] == [
        f"prompts.txt:1/{n}" for n in range(3)
    ]
    again = run_stand_in(spec)
    assert (again.is_new, again.samples_now) == (False, 0)


@pytest.mark.timeout(120)
def test_bad_input_writes_nothing(run_stand_in, make_spec, tmp_path: Path) -> None:
    spec = make_spec([])
    with pytest.raises(InputError, match="has no rows"):
        run_stand_in(spec)
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(120)
def test_new_inputs_are_added_to_a_finished_job(run_stand_in, make_spec, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one\ntwo\n")
    spec = make_spec(input={"uri": str(tmp_path / "in")})
    assert run_stand_in(spec).version.number == 1
    (tmp_path / "in" / "b.txt").write_text("three\n")
    second = run_stand_in(spec)
    assert (second.version.number, second.samples_now, second.version.counts["kept"]) == (2, 1, 3)
