"""Jobs on a Ray cluster of several nodes: python -m tests.integration.several_nodes FOLDER.

A node is drained and another one killed while a job runs. Then the head of the cluster dies in the middle of the next
job. The last line of the output is the result as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

import pipelines.engine.cluster
from jobs.drain import drain_node, wait_until_empty
from jointdit.errors import PermanentError
from pipelines.run.job import run_job
from pipelines.spec.job import JobSpec, load_spec
from tests import stand_in

DETECTION = {  # the cluster detects a dead node within seconds
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 4,
    "health_check_timeout_ms": 1000,
}
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
NODES = 3  # each has room for one worker
HEAD_SECONDS = 5.0


class TogetherWorker(stand_in.SlowWorker):
    """Begins when each node has a worker; otherwise the first worker could do all the work on a busy machine."""

    def load(self) -> Any:
        pipe, up = super().load(), Path(self.context.spec.output.uri + ".up")
        up.mkdir(exist_ok=True)
        (up / str(os.getpid())).touch()
        while len(list(up.iterdir())) < NODES:
            threading.Event().wait(0.05)
        return pipe


def make_spec(folder: Path, name: str, samples: int) -> JobSpec:
    (folder / f"{name}.txt").write_text("".join(f"prompt {n}\n" for n in range(samples)))
    return load_spec(
        {
            "task": "joint",
            "model": {"name": "tiny", "steps": 1, "height": 32, "width": 32, "batch_size": 2},
            "input": {"uri": str(folder / f"{name}.txt")},
            "output": {"uri": str(folder / name), "shard_rows": 2},
            "retries": {"crash": 1},
            "resources": {"stall_seconds": 60.0, "straggler_factor": None},
        }
    )


def when(condition: Callable[[], bool], what: Callable[[], None]) -> threading.Thread:
    """Start a thread that calls `what` as soon as a condition holds."""

    def watch() -> None:
        until = time.monotonic() + 200
        while not condition():
            assert time.monotonic() < until
            threading.Event().wait(0.02)
        what()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def lose_nodes(folder: Path, cluster: Cluster, drained: Any, killed: Any) -> dict[str, Any]:
    spec = make_spec(folder, "nodes", 100)
    notice: dict[str, Any] = {}

    def has_worked(node: Any, times: int) -> Callable[[], bool]:
        return lambda: sum(place == node.node_id for _, place, _ in stand_in.read_calls(spec)) >= times

    def warn() -> None:
        notice["calls"] = len(stand_in.read_calls(spec))
        drain_node(cluster.address, drained.node_id, 3600.0)
        notice["is_empty"] = wait_until_empty(drained.node_id, time.monotonic() + 120)

    def kill() -> None:
        cluster.remove_node(killed, allow_graceful=False)

    threads = [when(has_worked(drained, 6), warn), when(has_worked(killed, 16), kill)]
    summary = run_job(spec, worker_class=TogetherWorker)
    for thread in threads:
        thread.join()
    calls = stand_in.read_calls(spec)
    return {
        "output": spec.output.uri,
        "counts": summary.version.counts,
        "samples_now": summary.samples_now,
        "calls": len(calls),
        "calls_on_drained_after_notice": sum(node == drained.node_id for _, node, _ in calls[notice["calls"] :]),
        "calls_on_killed": sum(node == killed.node_id for _, node, _ in calls),
        "drained_is_empty": notice["is_empty"],
        "killed_is_dead": not next(n for n in ray.nodes() if n["NodeID"] == killed.node_id)["Alive"],
    }


def lose_head(folder: Path, cluster: Cluster) -> dict[str, Any]:
    spec = make_spec(folder, "head", 60)
    pipelines.engine.cluster.HEAD_SECONDS = HEAD_SECONDS
    commits = Path(spec.output.uri) / "_commits"
    thread = when(
        lambda: commits.is_dir() and len(list(commits.glob("*.json"))) >= 2,
        lambda: cluster.head_node.kill_gcs_server(check_alive=False),
    )
    started, sentence = time.monotonic(), ""
    try:
        run_job(spec, worker_class=stand_in.SlowWorker)
    except PermanentError as error:
        sentence = str(error)
    thread.join()
    return {"spec": spec.as_given(), "sentence": sentence, "seconds": time.monotonic() - started}


def main() -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[stand_in.__name__])
    folder = Path(sys.argv[1])
    head = {**NODE, "include_dashboard": False, "_system_config": DETECTION}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    drained, killed = cluster.add_node(**NODE), cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    results = {"nodes": lose_nodes(folder, cluster, drained, killed), "head": lose_head(folder, cluster)}
    for node in [*cluster.worker_nodes, cluster.head_node]:
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    print(json.dumps(results), flush=True)
    os._exit(0)  # a driver without its head does not end by itself


if __name__ == "__main__":
    main()
