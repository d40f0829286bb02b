"""Regeneration and calibration on a real Ray, with killed and concurrent drivers."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.dataset.refilter import refilter
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version, read_outcomes
from pipelines.model.fingerprint import fingerprint_of
from pipelines.model.identity import identify_job
from pipelines.run.calibrate import calibrate
from pipelines.run.job import run_job
from pipelines.store.storage import Storage
from tests.integration.driver_process import kill, start_driver, wait_until
from tests.killed_job import all_rounds
from tests.local_job import job_in
from tests.stand_in import SlowWorker, StandInWorker, read_calls

QUALITY = {"filters": [{"kind": "depth_range"}], "regenerate": 2, "max_quarantined_fraction": 1.0}
PROMPTS = [f"{'FLAT' if number % 2 else 'fine'} {number}" for number in range(8)]
EXPECTED = {f"prompts.txt:{row}/0" for row in range(8)} | {
    f"prompts.txt:{row}/{number}" for row in range(1, 8, 2) for number in (1, 2)
}


def images(storage: Storage, version: Version) -> dict[str, tuple]:
    paths = version.files_of("kept") + version.files_of("rejected")
    tables = (pq.read_table(io.BytesIO(storage.read_bytes(path))) for path in paths)
    columns = ("id", "seed", "round", "rgb", "depth")
    return {row["id"]: tuple(row[c] for c in columns) for table in tables for row in table.to_pylist()}


def in_round(ledger: Ledger, number: int) -> set[str]:
    return {entry.shard.id for entry in ledger.planned() if entry.shard.round == number}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_concurrent_drivers_give_the_rows_of_one_run(
    ray_cluster: None, make_spec, s3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = s3.make_bucket() + "/out"
    spec = make_spec(PROMPTS, output={"uri": output, "shard_rows": 1}, quality=QUALITY)
    ledger = Ledger(Storage(output))
    ledger.open_job(spec, fingerprint_of(spec, identify_job(spec)))  # drivers then need not identify the weights
    moments: list[Callable[[], bool]] = [
        lambda: len(ledger.committed()) >= 3,  # within round 0
        lambda: bool(in_round(ledger, 1)),  # at the begin of round 1
        lambda: bool(in_round(ledger, 1) & ledger.committed()),  # within round 1
    ]
    for moment in moments:
        driver = start_driver(spec, tmp_path, "SlowWorker")
        try:
            wait_until(moment, driver, tmp_path, 200)
        finally:
            kill(driver)
    assert len(ledger.committed()) < len(EXPECTED), "the drivers were killed in the middle of the job"
    rival = start_driver(spec, tmp_path, "SlowWorker")
    try:
        summary = run_job(spec, worker_class=SlowWorker)
        assert rival.wait(timeout=200) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        kill(rival)
    assert summary.version.counts == {"kept": 4, "rejected": 12, "quarantined": 0}
    ids = read_outcomes(ledger.storage, summary.version)["id"].to_pylist()
    assert sorted(ids) == sorted(EXPECTED)
    assert validate(output).problems == []
    assert {sample for _, _, sample in read_calls(spec)} == EXPECTED

    whole = job_in(tmp_path, input={"uri": spec.input.uri[0]}, output={"shard_rows": 4}, quality=QUALITY)
    all_rounds(whole)
    assert images(ledger.storage, summary.version) == images(whole.context.storage, whole.publish()[0])

    everything = refilter(output, ["quality.filters=[]"]).version
    assert everything.counts == {"kept": 16, "rejected": 0, "quarantined": 0}
    calls = read_calls(spec)
    with caplog.at_level(logging.INFO, logger="pipelines"):
        again = run_job(spec, worker_class=SlowWorker)
    assert (again.version, again.is_new, read_calls(spec)) == (everything, False, calls)
    assert any("which `jointdit refilter` set for the whole dataset" in message for message in caplog.messages)
    assert validate(output).problems == []


@pytest.mark.slow
def test_a_calibration_is_a_separate_job(ray_cluster: None, make_spec, output: str) -> None:
    spec = make_spec(PROMPTS, output={"uri": output}, quality={"filters": [{"kind": "depth_range"}]})
    result = calibrate(spec, 4, reject=0.25, worker_class=StandInWorker)
    assert result.uri == f"{output}-calibration"
    assert (result.calibration.samples, result.calibration.quarantined) == (4, 0)
    assert [proposal.kind for proposal in result.proposals] == ["depth_range"] * len(result.proposals)
    assert set(Storage(result.uri).names("")) >= {"calibration.json", "calibration.yaml", "_job.json"}
    assert not Storage(output).exists("_job.json")
