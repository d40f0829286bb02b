"""Nodes that are drained or die during a job, and a head that dies."""

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
pytestmark = pytest.mark.slow  # it takes a while to detect a lost node


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of several_nodes.py, which runs once for all tests."""
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
def test_a_node_that_dies_blames_no_row(story: dict[str, Any]) -> None:
    result = story["nodes"]
    assert result["killed_is_dead"]
    assert result["calls_on_killed"] >= 16, "the node was in the middle of its work"
    assert result["counts"] == {"kept": 100, "rejected": 0, "quarantined": 0}
    assert result["samples_now"] == 100
    assert validate(result["output"]).problems == []
    assert Ledger(Storage(result["output"])).shards_with_crashes() == set()
    assert result["calls"] - 100 <= 2 * IN_FLIGHT * SHARD, "only samples in flight on the two nodes are generated again"


@pytest.mark.timeout(960)
def test_a_node_that_is_drained_gets_no_new_shards(story: dict[str, Any]) -> None:
    assert story["nodes"]["calls_on_drained_after_notice"] <= IN_FLIGHT * SHARD, "only the shards that it had"
    # Otherwise the cluster would only have room for fewer workers, and Ray would end any of them.
    assert "leaves: its node is being drained" in story["log"], "the worker may finish its shard"
    assert story["nodes"]["drained_is_empty"], "the preStop hook of the pod waits for that"


@pytest.mark.timeout(960)
def test_a_dead_head_is_one_message_and_the_next_run_resumes(ray_cluster: None, story: dict[str, Any]) -> None:
    result = story["head"]
    assert "the head of the Ray cluster has not answered for" in result["sentence"]
    assert result["sentence"].endswith("what is committed stays.")
    spec = load_spec(result["spec"])
    committed = len(Ledger(Storage(spec.output.uri)).committed())
    assert 2 <= committed < 30
    summary = run_job(spec, worker_class=SlowWorker)
    assert (summary.committed_before, summary.version.counts["kept"]) == (committed, 60)
    assert validate(spec.output.uri).problems == []
    assert len(read_calls(spec)) - 60 <= 2 * IN_FLIGHT * SHARD
