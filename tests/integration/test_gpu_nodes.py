"""Nodes with logical GPUs that are requested, join and are drained during a job, and a killed driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.validation.validate import validate
from tests.integration.gpu_nodes import BATCH, GPUS, GROWING_SHARDS, NODES, REQUESTED, SHARD

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of gpu_nodes.py, which runs once for all tests."""
    folder = tmp_path_factory.mktemp("gpus")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "tests.integration.gpu_nodes", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log)
        try:
            output, _ = process.communicate(timeout=580)
        finally:
            process.kill()
    assert process.returncode == 0, (folder / "log").read_text()[-4000:]
    result: dict[str, Any] = json.loads(output.decode().splitlines()[-1])
    return result


def test_a_growing_cluster_gets_no_request_for_more_gpus_than_shards(story: dict[str, Any]) -> None:
    assert story["killed"]["requested"] == REQUESTED["shards"] < REQUESTED["workers"]


def test_another_driver_resumes_the_job_of_a_killed_driver(story: dict[str, Any]) -> None:
    result, samples = story["killed"], REQUESTED["shards"] * SHARD
    assert NODES * GPUS * SHARD <= result["committed_before"] < samples, (
        "the driver was killed in the middle of the job"
    )
    assert result["counts"] == {"kept": samples, "rejected": 0, "quarantined": 0}
    assert validate(result["output"]).problems == []
    assert result["generated_again"] == 0, "no committed sample is generated again"
    assert result["calls"] <= samples + NODES * GPUS * SHARD


def test_each_gpu_has_a_worker_also_on_a_node_that_joins(story: dict[str, Any]) -> None:
    result = story["growing"]
    workers = Counter(result["places"].values())
    assert workers == dict.fromkeys([*result["first"], result["joined"]], GPUS)
    assert len(result["first"]) == NODES
    assert result["joined"] not in result["first"]


def test_the_work_of_a_drained_node_moves_and_nothing_is_generated_twice(story: dict[str, Any]) -> None:
    result, samples = story["growing"], GROWING_SHARDS * SHARD
    assert result["counts"] == {"kept": samples, "rejected": 0, "quarantined": 0}
    assert validate(result["output"]).problems == []
    assert result["calls_on_drained_after_notice"] == GPUS * BATCH, "each worker there finishes its current shard"
    assert result["calls"] == samples
    assert result["drained_is_empty"], "the preStop hook of the pod waits for that"
