"""Jobs on nodes with two logical GPUs each: python -m tests.integration.gpu_nodes FOLDER.

The cluster starts with a head only. A job requests GPUs, three nodes join, its driver is killed and another driver
resumes the job. Then a job takes all GPUs; a fourth node joins while it runs, and one of the first nodes is drained.
The last line of the output is the result as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster

from jobs.drain import drain_node, wait_until_empty
from pipelines.ledger.ledger import Ledger
from pipelines.run.job import RunSummary, run_job
from pipelines.spec.job import JobSpec, load_spec
from pipelines.store.storage import Storage
from tests import stand_in
from tests.integration.driver_process import kill, start_driver

NODES, GPUS = 3, 2
NODE = {"num_cpus": GPUS, "num_gpus": GPUS, "object_store_memory": 80_000_000}
BATCH = 2
SHARD = 2 * BATCH  # samples
REQUESTED = {"shards": 16, "workers": 50}
GROWING_SHARDS = 30
WITHOUT_END = 10**6
SECONDS = 250.0  # deadline for each condition on a busy machine


def make_spec(folder: Path, name: str, shards: int, **resources: Any) -> JobSpec:
    (folder / name).mkdir()
    (folder / name / "prompts.txt").write_text("".join(f"prompt {n}\n" for n in range(shards * SHARD)))
    return load_spec(
        {
            "task": "joint",
            "model": {"name": "tiny", "steps": 1, "height": 32, "width": 32, "batch_size": BATCH},
            "input": {"uri": str(folder / name / "prompts.txt")},
            "output": {"uri": str(folder / name / "out"), "shard_rows": SHARD},
            "resources": {"stall_seconds": SECONDS, "straggler_factor": None, **resources},
        }
    )


def wait(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, f"timeout: {what}"
        time.sleep(0.05)


def requested_gpus(address: str) -> int:
    """Return the number of GPUs in the demand of Ray's autoscaler."""
    demand = get_cluster_status(address).resource_demands.ray_task_actor_demand
    bundles = [bundle for request in demand for bundle in request.bundles_by_count]
    return sum(bundle.count for bundle in bundles if bundle.bundle.get("GPU", 0) >= 1)


class Listener(logging.Handler):
    """Counts the messages of a logger that contain some words."""

    def __init__(self, logger: str, words: str) -> None:
        super().__init__()
        self.words, self.count = words, 0
        logging.getLogger(logger).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.count += self.words in record.getMessage()


def lose_driver(folder: Path, cluster: Cluster) -> dict[str, Any]:
    """Run a job that requests more GPUs than there are and whose driver is killed; resume it."""
    spec = make_spec(folder, "killed", REQUESTED["shards"], device="cuda", workers=REQUESTED["workers"])
    ledger = Ledger(Storage(spec.output.uri))
    stand_in.open_gate(spec, SHARD)  # one shard per process, so that most shards are pending
    driver = start_driver(spec, folder, stand_in.GatedWorker.__name__)
    try:
        wait(
            lambda: requested_gpus(cluster.address) or driver.poll() is not None, "the autoscaler has a demand for GPUs"
        )
        wait(lambda: requested_gpus(cluster.address) >= REQUESTED["shards"], "the demand covers all shards")
        requested = requested_gpus(cluster.address)
        for _ in range(NODES):
            cluster.add_node(**NODE)
        wait(lambda: len(ledger.committed()) >= NODES * GPUS, "each worker has committed a shard")
    finally:
        kill(driver)
    committed = {sample.id for shard in ledger.committed() for sample in ledger.read_commit(shard).samples}
    calls = len(stand_in.read_calls(spec))
    stand_in.open_gate(spec, WITHOUT_END)
    summary = run_job(spec, worker_class=stand_in.GatedWorker)
    again = [sample for _, _, sample in stand_in.read_calls(spec)[calls:]]
    assert summary.version is not None
    return {
        "output": spec.output.uri,
        "requested": requested,
        "committed_before": len(committed),
        "generated_again": len(committed.intersection(again)),
        "calls": len(stand_in.read_calls(spec)),
        "counts": summary.version.counts,
    }


def grow_and_drain(folder: Path, cluster: Cluster) -> dict[str, Any]:
    """Run a job on all GPUs while a node joins and another one is drained.

    Each worker waits in its first shard until the driver knows of the drain, then until the drained node is empty.
    """
    spec = make_spec(folder, "growing", GROWING_SHARDS)
    leaving = Listener("pipelines.engine.oversight", "its node is being drained")

    def workers() -> int:
        return len({pid for pid, _, _ in stand_in.read_calls(spec)})

    stand_in.open_gate(spec, BATCH)
    summaries: list[RunSummary] = []
    # Ray can start nodes from the main thread only, so the job runs in another one.
    job = threading.Thread(target=lambda: summaries.append(run_job(spec, worker_class=stand_in.GatedWorker)))
    job.start()
    first = [node.node_id for node in cluster.worker_nodes]
    wait(lambda: workers() == NODES * GPUS or not job.is_alive(), "each GPU has a worker")
    joined = cluster.add_node(**NODE).node_id
    wait(lambda: workers() == (NODES + 1) * GPUS or not job.is_alive(), "the new node has workers")
    notice = len(stand_in.read_calls(spec))
    drain_node(cluster.address, first[0], 3600.0)
    wait(lambda: leaving.count == GPUS or not job.is_alive(), "the driver knows of the drain")
    stand_in.open_gate(spec, SHARD)
    is_empty = wait_until_empty(first[0], time.monotonic() + SECONDS)
    stand_in.open_gate(spec, WITHOUT_END)
    job.join()
    calls = stand_in.read_calls(spec)
    (version,) = [summary.version for summary in summaries]
    assert version is not None
    return {
        "output": spec.output.uri,
        "first": first,
        "joined": joined,
        "places": {pid: node for pid, node, _ in calls},
        "calls": len(calls),
        "calls_on_drained_after_notice": sum(node == first[0] for _, node, _ in calls[notice:]),
        "drained_is_empty": is_empty,
        "counts": version.counts,
    }


def main() -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[stand_in.__name__])
    logging.basicConfig(level=logging.INFO)
    folder = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    results: dict[str, Any] | None = None
    try:
        results = {"killed": lose_driver(folder, cluster), "growing": grow_and_drain(folder, cluster)}
    finally:
        if results is None:
            traceback.print_exc()
        for node in [*cluster.worker_nodes, cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        print(json.dumps(results), flush=True)
        os._exit(results is None)  # without waiting for the job's thread


if __name__ == "__main__":
    main()
