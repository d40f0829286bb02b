"""Each kind of fault on a real Ray, with the stand-in for the weights: what it costs, and what it may not touch."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from jointdit.errors import InputError, ModelError, PermanentError
from pipelines.dataset.validation.validate import validate
from pipelines.engine import chains
from pipelines.engine.dispatch import Dispatcher
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest, read_outcomes
from pipelines.store.storage import Storage
from tests import stand_in

# The workers of the session's Ray do not import from tests/: the faults travel with their functions.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def outcome_of(output: str) -> dict[str, str]:
    storage = Storage(output)
    table = read_outcomes(storage, read_latest(storage))
    return dict(zip(table["id"].to_pylist(), table["outcome"].to_pylist(), strict=True))


def test_bad_rows_are_quarantined_alone(run_stand_in, make_spec) -> None:
    spec = make_spec(["fine", "", "NAN", "fine", "RAISE", "fine"])
    summary = run_stand_in(spec)
    assert summary.counts_now == {"kept": 3, "rejected": 0, "quarantined": 3}
    assert [outcome[0] for outcome in outcome_of(spec.output.uri).values()] == ["k", "q", "q", "k", "q", "k"]
    assert validate(spec.output.uri).problems == []


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


def test_a_worker_that_dies_is_replaced_and_its_shards_go_again(
    run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, rounds, run = make_spec([f"fine {n}" for n in range(16)]), [], Dispatcher.run
    monkeypatch.setattr(Dispatcher, "run", lambda self, entries: (rounds.append(len(entries)), run(self, entries)))
    summary = run_stand_in(spec, Doomed)
    assert summary.version.counts == {"kept": 16, "rejected": 0, "quarantined": 0}
    assert rounds == [4], "no shard was forgotten until the next look at the ledger"
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


class HangsAtStart(stand_in.StandInWorker):
    """The first one of all never finishes loading."""

    def load(self):
        try:
            os.close(os.open(self.context.spec.output.uri + ".hung", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().load()
        threading.Event().wait()


@pytest.mark.timeout(120)
def test_a_worker_that_hangs_while_it_loads_is_replaced(run_stand_in, make_spec) -> None:
    spec = make_spec(["fine", "fine"], resources={"workers": 1, "start_seconds": 4.0})
    summary = run_stand_in(spec, HangsAtStart)
    assert os.path.exists(spec.output.uri + ".hung")
    assert summary.version.counts == {"kept": 2, "rejected": 0, "quarantined": 0}
    assert Ledger(Storage(spec.output.uri)).shards_with_crashes() == set()


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


def test_a_permanent_fault_stops_at_once_with_its_sentence(run_stand_in, make_spec) -> None:
    with pytest.raises(ModelError, match=r"^model.name x has no weights: give a checkpoint\.$"):
        run_stand_in(make_spec(["fine"]), NoSuchModel)


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
            from pipelines.store.errors import TransientError

            raise TransientError("the store did not answer as it should (SlowDown).")
        super().write_bytes(name, data)


def test_a_store_that_is_throttled_costs_a_finish_and_no_gpu(
    run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.ledger.ledger.Storage", FlakyStore)
    spec = make_spec(["fine", "fine"], output={"shard_rows": 1})
    assert run_stand_in(spec, stand_in.RecordingWorker).version.counts["kept"] == 2
    assert Path(spec.output.uri + ".failures").read_bytes() == b"xx"
    assert len(stand_in.read_calls(spec)) == 2, "the results were kept"
    assert validate(spec.output.uri).problems == []


def test_a_spent_budget_stops_the_run(run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ledger.ledger.Storage", FlakyStore)
    with pytest.raises(PermanentError, match=r"met 1 infrastructure faults, more than retries.infrastructure 0"):
        run_stand_in(make_spec(["fine"], retries={"infrastructure": 0}))


def test_rejects_are_regenerated_with_new_samples(run_stand_in, make_spec) -> None:
    spec = make_spec(["fine", "FLAT", "fine"], quality={"filters": [{"kind": "depth_range"}], "regenerate": 2})
    summary = run_stand_in(spec)
    assert summary.version.counts == {"kept": 2, "rejected": 3, "quarantined": 0}
    assert [i for i, o in outcome_of(spec.output.uri).items() if o == "rejected"] == [
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


def first(marker: str) -> bool:
    """Whether this is the first process of all to ask; the marker holds its pid."""
    try:
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    return True


def reader_that_row_5_kills(context, entry, isolation):
    rows = {(n, row) for n, span in enumerate(entry.shard.spans) for row in range(span.start, span.stop)}
    if 5 in {row for _, row in rows - isolation.poison_rows}:
        os.kill(os.getpid(), signal.SIGKILL)
    return chains._read(context, entry, isolation)


def try_that_row_5_kills(context, entry, span, start, stop):
    if start <= 5 < stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return chains._try_read(context, entry, span, start, stop)


def test_a_row_that_kills_its_reader_is_found_and_only_it_is_quarantined(
    run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec([f"fine {n}" for n in range(12)], retries={"crash": 2})
    with monkeypatch.context() as patch:
        patch.setattr(chains, "_read", reader_that_row_5_kills)
        patch.setattr(chains, "_try_read", try_that_row_5_kills)
        summary = run_stand_in(spec, stand_in.RecordingWorker)
    assert summary.version.counts == {"kept": 11, "rejected": 0, "quarantined": 1}
    assert outcome_of(spec.output.uri)["prompts.txt:5/0"] == "quarantined"
    assert len(stand_in.read_calls(spec)) == 11, "its neighbours waited for nothing and were made once"
    assert validate(spec.output.uri).problems == []


class Deadly(np.ndarray):
    """A map that takes down whoever takes its percentiles, as a crash in a C library does."""

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


def test_a_sample_that_kills_its_finish_is_found_and_only_it_is_quarantined(run_stand_in, make_spec) -> None:
    prompts = [f"fine {n}" for n in range(8)]
    prompts[2] = "SEGFAULT"
    spec = make_spec(prompts, retries={"crash": 1})
    summary = run_stand_in(spec, DeadlyResults)
    assert summary.version.counts == {"kept": 7, "rejected": 0, "quarantined": 1}
    assert outcome_of(spec.output.uri)["prompts.txt:2/0"] == "quarantined"
    assert len(stand_in.read_calls(spec)) == 8, "nothing was generated again for it"
    assert validate(spec.output.uri).problems == []


class BrokenDevice(stand_in.StandInWorker):
    """A GPU that fell off the bus: at its first batch of all, or at every one."""

    once = True

    def load(self):
        pipe, marker = super().load(), self.context.spec.output.uri + ".broke"

        def call(**arguments):
            if not self.once or first(marker):
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")
            return pipe(**arguments)

        return call


class AlwaysBroken(BrokenDevice):
    once = False


def test_a_broken_gpu_costs_its_worker_and_no_row_is_blamed(run_stand_in, make_spec) -> None:
    spec = make_spec([f"fine {n}" for n in range(8)], retries={"crash": 1})
    assert run_stand_in(spec, BrokenDevice).version.counts["kept"] == 8
    assert os.path.exists(spec.output.uri + ".broke")
    assert Ledger(Storage(spec.output.uri)).shards_with_crashes() == set()


def test_gpus_that_are_all_broken_stop_the_run(run_stand_in, make_spec) -> None:
    with pytest.raises(ModelError, match=r"3 workers in a row failed at their first batch: the GPU of .* failed"):
        run_stand_in(make_spec(["fine"]), AlwaysBroken)


class SmallMemory(stand_in.RecordingWorker):
    """A GPU that fits two samples at once; more is torch's own error."""

    def load(self):
        pipe, log = super().load(), self.context.spec.output.uri + ".batches"

        def call(*, seeds, **arguments):
            with open(log, "a") as file:
                file.write(f"{len(seeds)}\n")
            if len(seeds) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return pipe(seeds=seeds, **arguments)

        return call


def test_out_of_gpu_memory_halves_the_batches_for_good(
    run_stand_in, make_spec, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec([f"fine {n}" for n in range(16)], model={"batch_size": 8}, output={"shard_rows": 8})
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        assert run_stand_in(spec, SmallMemory).version.counts["kept"] == 16
    assert Path(spec.output.uri + ".batches").read_text().split() == ["8", "4", *["2"] * 8]
    assert any("makes batches of 2 from now on" in message for message in caplog.messages)


class SlowOnce(stand_in.RecordingWorker):
    """Whoever is first at the straggler does not end before another attempt at its shard is committed."""

    def generate(self, part):
        spec = self.context.spec
        if any("STRAGGLER" in sample.row.prompt for sample in part) and first(spec.output.uri + ".slow"):
            shards = len((Path(spec.input.uri[0])).read_text().splitlines())
            while len(self.context.storage.list("_commits")) < shards:
                threading.Event().wait(0.05)
        return super().generate(part)


@pytest.mark.timeout(150)
def test_a_straggler_is_started_again_and_counted_once(
    run_stand_in, make_spec, caplog: pytest.LogCaptureFixture
) -> None:
    resources = {"workers": 2, "shards_in_flight": 1, "straggler_factor": 1.5, "straggler_seconds": 1.0}
    prompts = [f"fine {n}" for n in range(6)]
    prompts[1] = "STRAGGLER"
    spec = make_spec(prompts, output={"shard_rows": 1}, resources={**resources, "stall_seconds": 100.0})
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        summary = run_stand_in(spec, SlowOnce)
    assert (summary.samples_now, summary.committed_now) == (6, 6)
    assert summary.version.counts == {"kept": 6, "rejected": 0, "quarantined": 0}
    assert sum("is late and is started again" in message for message in caplog.messages) == 1
    assert Ledger(Storage(spec.output.uri)).shards_with_crashes() == set(), "the slow worker was not taken for dead"
    assert validate(spec.output.uri).problems == []


class FrozenFinish:
    """A finish that never ends, not even at its deadline, as on a machine that is cut off: the first one of all."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __call__(self, *arguments):
        if first(self.marker):
            threading.Event().wait()
        return chains._finish(*arguments)


class LostReceipt(FrozenFinish):
    """A finish whose process dies right after its commit: the first one of all."""

    def __call__(self, *arguments):
        receipt = chains._finish(*arguments)
        if first(self.marker):
            os.kill(os.getpid(), signal.SIGKILL)
        return receipt


def test_a_commit_whose_receipt_is_lost_is_counted_once(
    run_stand_in, make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = LostReceipt(str(tmp_path / "lost"))
    monkeypatch.setattr(chains, "_finish", lambda *arguments: lost(*arguments))
    spec = make_spec(["fine", "", "fine", "fine"], output={"shard_rows": 2})
    summary = run_stand_in(spec, stand_in.RecordingWorker)
    assert (tmp_path / "lost").exists()
    assert summary.counts_now == {"kept": 3, "rejected": 0, "quarantined": 1}
    assert len(stand_in.read_calls(spec)) == 3
    assert validate(spec.output.uri).problems == []
    assert len(Storage(spec.output.uri).list("data")) == 2, "the second try threw its objects away"


@pytest.mark.timeout(120)
def test_a_finish_that_never_ends_is_started_again(
    run_stand_in, make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = FrozenFinish(str(tmp_path / "frozen"))
    monkeypatch.setattr(chains, "_finish", lambda *arguments: frozen(*arguments))
    spec = make_spec(["fine", "fine"], resources={"stall_seconds": 2.0})
    try:
        assert run_stand_in(spec, stand_in.RecordingWorker).version.counts["kept"] == 2
    finally:
        os.kill(int((tmp_path / "frozen").read_text()), signal.SIGKILL)  # it would keep its CPU for ever
    assert len(stand_in.read_calls(spec)) == 2
