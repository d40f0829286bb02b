"""Workers, tasks and stores that fail: the run recovers and blames no row, on a real Ray with the stand-in model."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import ray
import torch

from jointdit.errors import ModelError, PermanentError
from pipelines.dataset.validation.validate import validate
from pipelines.engine import chains
from pipelines.engine.dispatch import Dispatcher
from pipelines.ledger.ledger import Ledger
from pipelines.store.errors import TransientError
from pipelines.store.storage import Storage
from tests import stand_in

# Ray workers cannot import from tests/, so functions and classes of this file are pickled by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def is_first(marker: str) -> bool:
    """Return True in the first process that calls this, and write its pid to the marker file."""
    try:
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    return True


class DiesOnce(stand_in.StandInWorker):
    """The first worker that generates a batch kills itself."""

    def generate(self, part):
        if is_first(self.context.spec.output.uri + ".died"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(part)


def test_a_worker_that_dies_is_replaced_and_its_shards_are_retried(
    run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, rounds, run = make_spec([f"fine {n}" for n in range(16)]), [], Dispatcher.run
    monkeypatch.setattr(Dispatcher, "run", lambda self, entries: (rounds.append(len(entries)), run(self, entries)))
    summary = run_stand_in(spec, DiesOnce)
    assert summary.version.counts == {"kept": 16, "rejected": 0, "quarantined": 0}
    assert rounds == [4], "one round is enough: the dispatcher loses no shard"
    assert os.path.exists(spec.output.uri + ".died")
    ledger = Ledger(Storage(spec.output.uri))
    assert sum(len(ledger.crashes(shard)) for shard in ledger.shards_with_crashes()) == 1
    assert validate(spec.output.uri).problems == []


class HangsAtStart(stand_in.StandInWorker):
    """The first worker that loads the model never finishes."""

    def load(self):
        if is_first(self.context.spec.output.uri + ".hung"):
            threading.Event().wait()
        return super().load()


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
    """A worker that fails permanently while it loads the model."""

    def load(self):
        raise ModelError("model.name x has no weights: give a checkpoint.")


def test_a_permanent_fault_stops_the_run_with_its_message(run_stand_in, make_spec) -> None:
    with pytest.raises(ModelError, match=r"^model.name x has no weights: give a checkpoint\.$"):
        run_stand_in(make_spec(["fine"]), NoSuchModel)


class FlakyStore(Storage):
    """A store that refuses the first two writes of tables."""

    def write_bytes(self, name: str, data: bytes) -> None:
        marker = Path(self.uri + ".failures")
        failures = len(marker.read_bytes()) if marker.exists() else 0
        if name.startswith("data/") and failures < 2:
            marker.write_bytes(b"x" * (failures + 1))
            raise TransientError("the store did not answer as it should (SlowDown).")
        super().write_bytes(name, data)


def test_a_throttled_store_repeats_the_finish_task_but_not_the_generation(
    run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.ledger.ledger.Storage", FlakyStore)
    spec = make_spec(["fine", "fine"], output={"shard_rows": 1})
    assert run_stand_in(spec, stand_in.RecordingWorker).version.counts["kept"] == 2
    assert Path(spec.output.uri + ".failures").read_bytes() == b"xx"
    assert len(stand_in.read_calls(spec)) == 2, "the results are kept"
    assert validate(spec.output.uri).problems == []


def test_an_exhausted_fault_budget_stops_the_run(run_stand_in, make_spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ledger.ledger.Storage", FlakyStore)
    with pytest.raises(PermanentError, match=r"met 1 infrastructure faults, more than retries.infrastructure 0"):
        run_stand_in(make_spec(["fine"], retries={"infrastructure": 0}))


class BrokenDevice(stand_in.StandInWorker):
    """A GPU that fails at the first batch of the job, or at every batch."""

    once = True

    def load(self):
        pipe, marker = super().load(), self.context.spec.output.uri + ".broke"

        def call(**arguments):
            if not self.once or is_first(marker):
                raise torch.AcceleratorError("CUDA error: unspecified launch failure")
            return pipe(**arguments)

        return call


class AlwaysBroken(BrokenDevice):
    once = False


def test_a_broken_gpu_replaces_its_worker_and_blames_no_row(run_stand_in, make_spec) -> None:
    spec = make_spec([f"fine {n}" for n in range(8)], retries={"crash": 1})
    assert run_stand_in(spec, BrokenDevice).version.counts["kept"] == 8
    assert os.path.exists(spec.output.uri + ".broke")
    assert Ledger(Storage(spec.output.uri)).shards_with_crashes() == set()


@pytest.mark.slow
def test_the_run_stops_if_every_gpu_is_broken(run_stand_in, make_spec) -> None:
    with pytest.raises(ModelError, match=r"3 workers in a row failed at their first batch: the GPU of .* failed"):
        run_stand_in(make_spec(["fine"]), AlwaysBroken)


class SmallMemory(stand_in.RecordingWorker):
    """A GPU with memory for two samples; a larger batch raises torch.OutOfMemoryError."""

    def load(self):
        pipe, log = super().load(), self.context.spec.output.uri + ".batches"

        def call(*, seeds, **arguments):
            with open(log, "a") as file:
                file.write(f"{len(seeds)}\n")
            if len(seeds) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return pipe(seeds=seeds, **arguments)

        return call


def test_out_of_gpu_memory_halves_the_batch_size(run_stand_in, make_spec, caplog: pytest.LogCaptureFixture) -> None:
    spec = make_spec([f"fine {n}" for n in range(16)], model={"batch_size": 8}, output={"shard_rows": 8})
    with caplog.at_level(logging.WARNING, logger="pipelines"):
        assert run_stand_in(spec, SmallMemory).version.counts["kept"] == 16
    assert Path(spec.output.uri + ".batches").read_text().split() == ["8", "4", *["2"] * 8]
    assert any("makes batches of 2:" in message for message in caplog.messages)


class SlowOnce(stand_in.RecordingWorker):
    """The first attempt at the straggler waits until every shard is committed, its own by another attempt."""

    def generate(self, part):
        spec = self.context.spec
        if any("STRAGGLER" in sample.row.prompt for sample in part) and is_first(spec.output.uri + ".slow"):
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
    assert Ledger(Storage(spec.output.uri)).shards_with_crashes() == set(), "the slow worker does not count as crashed"
    assert validate(spec.output.uri).problems == []


class FrozenFinish:
    """The first finish task never ends, not even at its deadline, as on a node without network."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __call__(self, *arguments):
        if is_first(self.marker):
            threading.Event().wait()
        return chains._finish(*arguments)


class LostReceipt(FrozenFinish):
    """The process of the first finish task dies right after its commit."""

    def __call__(self, *arguments):
        receipt = chains._finish(*arguments)
        if is_first(self.marker):
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
    assert len(Storage(spec.output.uri).list("data")) == 2, "the second attempt deletes its objects"


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
        os.kill(int((tmp_path / "frozen").read_text()), signal.SIGKILL)  # the task would hold its CPU forever
    assert len(stand_in.read_calls(spec)) == 2
