"""Nodes with logical GPUs: those that are asked for, join and are drained while a job runs, and a killed driver."""

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
from tests.integration.gpu_nodes import ASKED_FOR, BATCH, GPUS, GROWING_SHARDS, NODES, SHARD

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What gpu_nodes.py tells, started once for all tests here."""
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
    told: dict[str, Any] = json.loads(output.decode().splitlines()[-1])
    return told


def test_a_cluster_that_grows_is_asked_for_no_more_gpus_than_there_are_shards(story: dict[str, Any]) -> None:
    assert story["killed"]["asked_for"] == ASKED_FOR["shards"] < ASKED_FOR["workers"]


def test_another_driver_goes_on_where_one_was_killed(story: dict[str, Any]) -> None:
    told, samples = story["killed"], ASKED_FOR["shards"] * SHARD
    assert NODES * GPUS * SHARD <= told["committed_before"] < samples, "it was killed in the middle"
    assert told["counts"] == {"kept": samples, "rejected": 0, "quarantined": 0}
    assert validate(told["output"]).problems == []
    assert told["made_again"] == 0, "what was committed was not made again"
    assert told["calls"] <= samples + NODES * GPUS * SHARD


def test_each_gpu_has_a_worker_also_those_of_a_node_that_joins(story: dict[str, Any]) -> None:
    told = story["growing"]
    workers = Counter(told["places"].values())
    assert workers == dict.fromkeys([*told["first"], told["joined"]], GPUS)
    assert len(told["first"]) == NODES
    assert told["joined"] not in told["first"]


def test_the_work_of_a_node_that_is_drained_moves_and_nothing_is_made_twice(story: dict[str, Any]) -> None:
    told, samples = story["growing"], GROWING_SHARDS * SHARD
    assert told["counts"] == {"kept": samples, "rejected": 0, "quarantined": 0}
    assert validate(told["output"]).problems == []
    assert told["calls_on_drained_after_notice"] == GPUS * BATCH, "each worker there finished the shard it was at"
    assert told["calls"] == samples
    assert told["drained_is_empty"], "a pod's hook waits for that"
