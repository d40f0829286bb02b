"""Nodes that are drained and nodes that die, and the head of the cluster too, in the middle of a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.validation.validate import validate
from pipelines.ledger.ledger import Ledger
from pipelines.run.job import run_job
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage
from tests.stand_in import SlowWorker, read_calls

ROOT = Path(__file__).parents[2]
SHARD, IN_FLIGHT = 2, 3  # samples; shards
pytestmark = pytest.mark.slow  # nodes that are lost are noticed after a while


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What several_nodes.py tells, started once for all tests here."""
    folder = tmp_path_factory.mktemp("nodes")
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS",)}
    command = [sys.executable, "-m", "tests.integration.several_nodes", str(folder)]
    environment |= {"PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log)
        try:
            output, _ = process.communicate(timeout=900)
        finally:
            process.kill()
    assert process.returncode == 0, (folder / "log").read_text()[-4000:]
    return {**json.loads(output.decode().splitlines()[-1]), "log": (folder / "log").read_text()}


@pytest.mark.timeout(960)
def test_a_node_that_dies_costs_work_and_no_row_is_blamed(story: dict[str, Any]) -> None:
    told = story["nodes"]
    assert told["killed_is_dead"]
    assert told["calls_on_killed"] >= 16, "it was in the middle of its work"
    assert told["counts"] == {"kept": 100, "rejected": 0, "quarantined": 0}
    assert told["samples_now"] == 100
    assert validate(told["output"]).problems == []
    assert Ledger(Storage(told["output"])).shards_with_crashes() == set()
    assert told["calls"] - 100 <= 2 * IN_FLIGHT * SHARD, "only what was in flight on the two nodes was made again"


@pytest.mark.timeout(960)
def test_a_node_that_is_drained_gets_no_new_shards(story: dict[str, Any]) -> None:
    assert story["nodes"]["calls_on_drained_after_notice"] <= IN_FLIGHT * SHARD, "what it had, and no more"
    # Without that the cluster only has room for fewer workers, and which of them is ended at once is chance.
    assert "leaves: its node is being drained" in story["log"], "it may finish what it is at"
    assert story["nodes"]["drained_is_empty"], "a pod's hook waits for that"


@pytest.mark.timeout(960)
def test_a_head_that_is_gone_is_one_sentence_and_running_again_goes_on(
    ray_cluster: None, story: dict[str, Any]
) -> None:
    told = story["head"]
    assert "the head of the Ray cluster has not answered for" in told["sentence"]
    assert told["sentence"].endswith("what is committed stays.")
    spec = load_spec(told["spec"])
    committed = len(Ledger(Storage(spec.output.uri)).committed())
    assert 2 <= committed < 30
    summary = run_job(spec, worker_class=SlowWorker)
    assert (summary.committed_before, summary.version.counts["kept"]) == (committed, 60)
    assert validate(spec.output.uri).problems == []
    assert len(read_calls(spec)) - 60 <= 2 * IN_FLIGHT * SHARD
