"""Ray: joining a cluster or starting a local one, and how many workers it can hold."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from jointdit.errors import PermanentError
from pipelines.spec import ResourcesSpec

CONNECT_SECONDS = 10.0
TASK_CPUS = 0.25  # each read and finish task, on a cluster of CPUs
TASK_SHARE = 0.1  # of its CPUs kept for them, at least two tasks a node
CPU_WORKER_BYTES = 1.5e9  # torch and a small model
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each of them takes."""

    workers: int
    num_gpus: float
    num_cpus: float
    task_cpus: float  # each read and finish task
    threads: int  # torch's, on CPU
    device: str


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Be connected to Ray inside: the connection there is, the cluster of RAY_ADDRESS, or a local one of our own.

    A local one has token authentication with a generated token, and no dashboard.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    local = not address
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray warns without it
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # faults are read from a chain's last reference
        "RAY_worker_niceness": "0",  # at Ray's own 15, anything else on the machine starves the job
    }
    if local:
        os.environ["RAY_AUTH_MODE"] = "token"  # whatever it was: who reaches a Ray without it may run code
    if local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        defaults["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)  # before the first import of Ray, which reads them once
    import ray

    if ray.is_initialized():
        yield
        return
    settings: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if local:
            ray.init(address="local", include_dashboard=False, **settings)
        else:
            _check_reachable(address)
            ray.init(**settings)
    except Exception as error:  # Ray itself raises bare Exception where it cannot start
        where = "a local Ray cannot be started" if local else f"the Ray cluster at {address} cannot be reached"
        raise PermanentError(f"{where}: {' '.join(str(error).split())[:300]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes to reach an address where nothing listens."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def plan_workers(resources: ResourcesSpec) -> WorkerPlan:
    """Follow the cluster: all its GPUs, or its CPUs where it has none.

    On CPUs the workers together reserve all but the tasks' share. So read and finish tasks always find room, also when
    a second driver runs on the same cluster: its workers wait until these are gone.

    Raises:
        PermanentError: more workers are asked for than its GPUs can hold.
    """
    import ray

    total = ray.cluster_resources()
    gpus = total.get("GPU", 0.0)
    if gpus > 0:
        room = int(gpus / resources.gpus_per_worker)
        workers = room if resources.workers == "auto" else resources.workers
        if not 1 <= workers <= room:
            raise PermanentError(
                f"resources: {max(1, workers)} workers of {resources.gpus_per_worker:g} GPUs do not fit into a cluster "
                f"with {gpus:g}: ask for fewer."
            )
        return WorkerPlan(workers, resources.gpus_per_worker, 1.0, 1.0, 1, "cuda")
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    nodes = [cpus for cpus in nodes if cpus > 0] or [1.0]
    most = max(1, min(int(sum(nodes)), int(total.get("memory", 0.0) / CPU_WORKER_BYTES)))
    workers = most if resources.workers == "auto" else resources.workers
    kept = max(TASK_SHARE * sum(nodes), 2 * TASK_CPUS * len(nodes))
    share = min((sum(nodes) - kept) / workers, max(nodes) - 2 * TASK_CPUS)
    share = max(0.01, math.floor(share * 100) / 100)
    return WorkerPlan(workers, 0.0, share, TASK_CPUS, max(1, int(share)), "cpu")
