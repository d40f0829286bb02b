"""Resume, retry and leases with drivers on a real Ray: what is generated, and what is not generated again."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
import ray

from jobs.cli import main
from pipelines.dataset.validation.validate import validate
from pipelines.engine import chains
from pipelines.ledger.lease import read_leases
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_outcomes
from pipelines.model.fingerprint import fingerprint_of
from pipelines.model.identity import identify_job
from pipelines.plan.propose import extend_plan, propose
from pipelines.plan.retry import plan_retry
from pipelines.spec.job import JobSpec
from pipelines.store.storage import Storage
from tests import stand_in
from tests.integration.driver_process import kill, start_driver, wait_until

original_read = chains._read


class CountingWorker(stand_in.StandInWorker):
    """Logs each load, each sample to generate, and the number of leases."""

    def load(self):
        self.note("loads", "1\n")
        return super().load()

    def generate(self, part):
        self.note("samples", "".join(f"{sample.id}\n" for sample in part))
        self.note("leases", f"{len(read_leases(self.context.storage))}\n")
        return super().generate(part)

    def note(self, what: str, lines: str) -> None:
        folder = Path(self.context.spec.output.uri + ".seen")
        folder.mkdir(exist_ok=True)
        with open(folder / what, "a") as file:
            file.write(lines)


class LateWorker(stand_in.StandInWorker):
    """Is not ready before its first shard has been read."""

    def set_up(self):
        until = time.monotonic() + 40
        while not Path(self.context.spec.output.uri + ".read").exists():
            assert time.monotonic() < until, "no shard is read while the worker loads its model"
            threading.Event().wait(0.05)
        return super().set_up()


def read_and_note(context, entry, isolation):
    result = original_read(context, entry, isolation)
    with open(context.spec.output.uri + ".read", "a") as file:
        file.write(f"{entry.shard.id}\n")
    return result


def seen(spec: JobSpec, what: str = "samples") -> list[str]:
    """Return the lines that the workers logged since the last call."""
    path = Path(spec.output.uri + ".seen") / what
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.fixture(autouse=True)
def _pickle_by_value() -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_a_finished_job_generates_nothing_again(run_stand_in, make_spec) -> None:
    quality = {"filters": [{"kind": "depth_range"}], "regenerate": 1}
    prompts = ["fine", "FLAT", "", "fine", "NAN", "FLAT", "fine", "fine"]
    spec = make_spec(prompts, quality=quality)
    storage = Storage(spec.output.uri)
    first = run_stand_in(spec, CountingWorker)
    assert first.version.counts == {"kept": 4, "rejected": 4, "quarantined": 2}
    generated = seen(spec)
    assert len(generated) == len(set(generated)) == 9  # seven prompts that are not empty, and two new seeds
    assert set(seen(spec, "leases")) == {"1"}, "the driver holds a lease while it runs"
    assert read_leases(storage) == []
    assert seen(spec, "loads")

    again = run_stand_in(spec, CountingWorker)
    assert seen(spec) == [], "nothing is generated for rejected or quarantined samples"
    assert seen(spec, "loads") == [], "no worker starts"
    assert (again.version, again.is_new, again.committed_now) == (first.version, False, 0)
    (segment,) = first.version.segments
    described = [path.removeprefix("_versions/") for path in segment.paths]
    assert sorted(storage.names("_versions")) == sorted([*described, "000001/version.json"])

    lost = Ledger(storage).planned()[1]  # as if the driver had been killed before this commit
    for name in (f"_commits/{lost.shard.id}.json", "_versions/000001/version.json"):
        storage.delete(name)
    assert run_stand_in(spec, CountingWorker).version.counts == first.version.counts
    assert sorted(seen(spec)) == [f"prompts.txt:{n}/0" for n in range(4, 8)], "only the shard without a commit"
    assert validate(spec.output.uri).problems == []


def test_a_changed_file_generates_its_changed_rows(run_stand_in, make_spec) -> None:
    prompts = [f"fine {number}" for number in range(24)]
    spec = make_spec(prompts)
    run_stand_in(spec, CountingWorker)
    assert len(seen(spec)) == 24
    prompts[5] = "another"
    spec = make_spec([*prompts, *(f"fine {number}" for number in range(24, 36))])
    second = run_stand_in(spec, CountingWorker)
    assert sorted(seen(spec)) == sorted(["prompts.txt@2:5/0", *(f"prompts.txt:{number}/0" for number in range(24, 36))])
    assert (second.samples_now, second.version.counts["kept"]) == (13, 36)
    assert validate(spec.output.uri).problems == []


@pytest.mark.slow
def test_a_retry_survives_the_death_of_its_driver(run_stand_in, make_spec, tmp_path: Path, s3) -> None:
    """Plan quarantined samples again, kill the driver that retries them, and complete the retry with the next one."""
    output = s3.make_bucket() + "/out"
    prompts = [f"fine {n}" if n % 2 else "NAN" for n in range(20)]
    quality = {"max_quarantined_fraction": 0.5}
    spec = make_spec(prompts, output={"uri": output, "shard_rows": 2}, quality=quality)
    first = run_stand_in(spec)
    assert first.version.counts == {"kept": 10, "rejected": 0, "quarantined": 10}
    assert plan_retry(output, ["quarantined"]).counts == {"quarantined": 10}
    assert run_stand_in(spec).version.counts == first.version.counts, "samples that fail again do not stop the run"
    assert plan_retry(output, ["quarantined"]).counts == {"quarantined": 10}
    ledger = Ledger(Storage(output))
    before = len(ledger.committed())
    driver = start_driver(spec, tmp_path, "HealedWorker")
    try:
        wait_until(lambda: len(ledger.committed()) > before, driver, tmp_path, 60)
    finally:
        kill(driver)
    assert len(read_leases(ledger.storage)) == 1, "the lease of a killed driver stays and does not delay the next one"
    second = run_stand_in(spec, stand_in.HealedWorker)
    assert second.version.counts == {"kept": 20, "rejected": 0, "quarantined": 0}
    assert (second.version.number, second.version.superseded) == (3, 20)
    assert validate(output).problems == []
    ids = read_outcomes(ledger.storage, second.version)["id"].to_pylist()
    assert sorted(ids) == sorted(f"prompts.txt:{n}/0" for n in range(20))
    assert main(["gc", output, "--older-than", "0s"]) == 0
    assert validate(output).problems == []


def test_planned_rows_of_a_changed_file_do_not_stop_the_run(run_stand_in, make_spec, tmp_path: Path) -> None:
    """The rows share a shard with an unchanged file; they are quarantined there and planned again."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(f"{name}0\n{name}1\n")
    spec = make_spec(input={"uri": str(folder)}, quality={"max_quarantined_fraction": 0.0})
    ledger, fingerprint = Ledger(Storage(spec.output.uri)), fingerprint_of(spec, identify_job(spec))
    ledger.open_job(spec, fingerprint)
    extend_plan(spec, fingerprint, ledger, propose(spec, fingerprint, ledger))
    (folder / "a.txt").write_text("a0 changed\na1 changed\n")
    summary = run_stand_in(spec)
    assert summary.counts_now == {"kept": 4, "rejected": 0, "quarantined": 2}
    assert summary.version.counts == {"kept": 4, "rejected": 0, "quarantined": 0}
    assert validate(spec.output.uri).problems == []


def test_the_first_shards_are_read_while_workers_load_the_model(run_stand_in, make_spec, monkeypatch) -> None:
    monkeypatch.setattr(chains, "_read", read_and_note)
    spec = make_spec([f"fine {number}" for number in range(6)], output={"shard_rows": 2})
    assert run_stand_in(spec, LateWorker).counts_now["kept"] == 6
    reads = Path(spec.output.uri + ".read").read_text().split()
    assert len(reads) == len(set(reads)) == 3, "no shard is read twice"
    assert validate(spec.output.uri).problems == []
