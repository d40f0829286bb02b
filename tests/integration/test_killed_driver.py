"""Drivers killed in the middle of a run: the next one resumes, nothing is lost, doubled or generated again."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import ray

from pipelines.dataset.validation.validate import validate
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_outcomes
from pipelines.run.job import run_job
from pipelines.store.storage import Storage
from tests.integration import driver as driver_module
from tests.integration.driver_process import kill, start_driver, wait_until
from tests.stand_in import SlowWorker, StandInWorker, read_calls


@pytest.mark.slow  # the last test kills drivers with the stand-in, and a storm does with everything else
@pytest.mark.timeout(900)
def test_a_killed_driver_is_resumed_with_the_tiny_model(
    ray_cluster: None, make_spec, output: str, tmp_path: Path
) -> None:
    prompts = [f"a red sphere number {n}" for n in range(12)]
    spec = make_spec(prompts, output={"uri": output, "shard_rows": 1, "points": "ply"})
    ledger = Ledger(Storage(output))
    driver = start_driver(spec, tmp_path)
    try:
        wait_until(lambda: len(ledger.committed()) >= 2, driver, tmp_path, 200)
    finally:
        kill(driver)
    before = {name: ledger.read_commit(name) for name in ledger.committed()}
    versions_before = {f.path: f.etag for f in ledger.storage.list("_commits") + ledger.storage.list("data")}
    assert 2 <= len(before) < 12, "the driver was killed in the middle of the job"

    summary = run_job(spec)
    assert summary.version.counts == {"kept": 12, "rejected": 0, "quarantined": 0}
    assert summary.committed_now == 12 - summary.committed_before
    assert validate(output).problems == []
    after = {name: ledger.read_commit(name) for name in ledger.committed()}
    assert {name: after[name] for name in before} == before
    versions_after = {f.path: f.etag for f in ledger.storage.list("_commits") + ledger.storage.list("data")}
    assert {name: versions_after.get(name) for name in versions_before} == versions_before
    ids = read_outcomes(ledger.storage, summary.version)["id"].to_pylist()
    assert ids == [f"prompts.txt:{n}/0" for n in range(12)]


@pytest.mark.slow  # the last test kills drivers too
@pytest.mark.timeout(900)
def test_a_job_finishes_after_repeated_kills_of_drivers(
    ray_cluster: None, make_spec, output: str, tmp_path: Path
) -> None:
    spec = make_spec([f"prompt {n}" for n in range(48)], output={"uri": output, "shard_rows": 2})
    ledger = Ledger(Storage(output))
    for _ in range(2):
        had = len(ledger.committed())
        driver = start_driver(spec, tmp_path, "StandInWorker")
        try:
            wait_until(lambda had=had: len(ledger.committed()) > had, driver, tmp_path, 300)
        finally:
            kill(driver)
    assert len(ledger.committed()) < 24, "the drivers were killed in the middle of the job"
    summary = run_job(spec, worker_class=StandInWorker)
    assert summary.version.counts == {"kept": 48, "rejected": 0, "quarantined": 0}
    assert validate(output).problems == []


@pytest.mark.slow
def test_two_concurrent_drivers_duplicate_work_but_no_samples(
    ray_cluster: None, make_spec, output: str, tmp_path: Path
) -> None:
    spec = make_spec([f"prompt {n}" for n in range(40)], output={"uri": output, "shard_rows": 2})
    driver = start_driver(spec, tmp_path, "StandInWorker")
    try:
        summary = run_job(spec, worker_class=StandInWorker)
        assert driver.wait(timeout=100) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        kill(driver)
    assert summary.version.counts["kept"] == 40
    validated = validate(output)
    assert validated.problems == []
    assert validated.counts["kept"] == 40


def committed_samples(ledger: Ledger) -> set[str]:
    return {sample.id for shard in ledger.committed() for sample in ledger.read_commit(shard).samples}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_only_samples_in_flight_at_a_kill_are_generated_twice(
    ray_cluster: None, make_spec, tmp_path: Path, kills: int
) -> None:
    """Kill drivers at random moments of one job, each a fork of a warm process, and count all generated samples."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments, shard_rows, in_flight = random.Random(seed), 2, 3
    resources = {"workers": 1, "shards_in_flight": in_flight, "straggler_factor": None}
    samples = 12 * kills
    spec = make_spec([f"prompt {n}" for n in range(samples)], output={"shard_rows": shard_rows}, resources=resources)
    ledger = Ledger(Storage(spec.output.uri))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([driver_module.__name__])
    address = ray.get_runtime_context().gcs_address
    known: list[tuple[int, set[str]]] = []  # before each driver: number of calls, committed samples
    for _ in range(kills):
        known.append((len(read_calls(spec)), committed_samples(ledger)))
        driver = processes.Process(target=driver_module.run, args=(spec.as_given(), "SlowWorker", address))
        driver.start()
        try:
            more, since = moments.randrange(8), time.monotonic()
            while len(read_calls(spec)) <= known[-1][0] + more and driver.is_alive():
                if more == 0 and time.monotonic() - since > moments.uniform(0, 3):
                    break  # before the driver has begun
                time.sleep(0.01)
        finally:
            driver.kill()
            driver.join()
        assert driver.exitcode == -signal.SIGKILL, "the driver was killed, it did not end"
        _wait_for_exit({int(pid) for pid, _, _ in read_calls(spec)[known[-1][0] :]})
    known.append((len(read_calls(spec)), committed_samples(ledger)))
    assert len(known[-1][1]) < samples, "work is pending after each kill"
    summary = run_job(spec, worker_class=SlowWorker)
    assert summary.version.counts == {"kept": samples, "rejected": 0, "quarantined": 0}
    assert validate(spec.output.uri).problems == []

    calls = [sample for _, _, sample in read_calls(spec)]
    assert set(calls) == committed_samples(ledger)
    for start, committed in known:
        assert not committed & set(calls[start:]), "no committed sample is generated again"
    lost = 0  # samples in shards that were in flight at each kill
    for (start, _), (stop, committed) in itertools.pairwise(known):
        in_flight_then = {int(sample.split(":")[1].split("/")[0]) // shard_rows for sample in calls[start:stop]} - {
            int(sample.split(":")[1].split("/")[0]) // shard_rows for sample in committed
        }
        assert len(in_flight_then) <= in_flight
        lost += shard_rows * len(in_flight_then)
    assert len(calls) - samples <= lost
    print(f"{kills} kills, {samples} samples, {len(calls) - samples} generated twice, {lost} in flight at the kills")


def _wait_for_exit(pids: set[int]) -> None:
    """Wait until Ray has ended the workers of a dead driver, because they could still commit."""
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") and _is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
