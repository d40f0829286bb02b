"""A run that publishes at intervals, is killed, and ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import read_latest, read_outcomes, read_version
from pipelines.run.job import run_job
from pipelines.store.storage import Storage
from tests.integration.driver_process import kill, start_driver, wait_until
from tests.stand_in import StandInWorker


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_driver_publishes_at_intervals_and_the_next_one_goes_on(ray_cluster: None, make_spec, tmp_path: Path) -> None:
    output = {"shard_rows": 2, "publish_every": "1s"}
    spec = make_spec([f"prompt {n}" for n in range(100)], output=output)
    storage = Storage(spec.output.uri)

    def published() -> int:
        latest = read_latest(storage)
        return latest.number if latest is not None else 0

    driver = start_driver(spec, tmp_path, "SlowWorker")
    try:
        wait_until(lambda: published() >= 2, driver, tmp_path, 120)
    finally:
        kill(driver)
    partial = read_latest(storage)
    assert partial.is_partial
    assert 0 < partial.counts["kept"] == 100 - partial.left_out < 100
    problems = [each for each in validate(spec.output.uri).problems if not each.startswith("README.md")]
    assert problems == [], "the driver may have been killed while it rewrote the card"

    summary = run_job(spec, worker_class=StandInWorker)
    assert (summary.version.is_partial, summary.version.counts["kept"]) == (False, 100)
    assert validate(spec.output.uri).problems == []
    assert read_outcomes(storage, summary.version)["id"].to_pylist() == [f"prompts.txt:{n}/0" for n in range(100)]
    kept = set(read_outcomes(storage, read_version(storage, 1))["id"].to_pylist())
    assert kept < set(read_outcomes(storage, summary.version)["id"].to_pylist())
