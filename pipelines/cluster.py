"""Ray: joining a cluster or starting a local one, and how many workers it can hold."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from jointdit.errors import PermanentError
from pipelines.spec import ResourcesSpec

TASK_CPUS = 0.5  # read and finish on a cluster of CPUs, where the workers take the rest
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
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before the first import of Ray, which reads it once
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = not os.environ.get("RAY_ADDRESS")
    if local and os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns without it
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # faults are read from a chain's last reference
    import ray

    if ray.is_initialized():
        yield
        return
    settings: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if local:
            ray.init(address="local", include_dashboard=False, **settings)
        else:
            ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "a local Ray" if local else f"the Ray cluster at {os.environ['RAY_ADDRESS']}"
        raise PermanentError(f"{where} cannot be reached: {' '.join(str(error).split())[:300]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def plan_workers(resources: ResourcesSpec) -> WorkerPlan:
    """Follow the cluster: all its GPUs, or its CPUs where it has none.

    Raises:
        PermanentError: more workers are asked for than its GPUs can hold.
    """
    import ray

    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    nodes = max(1, sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0))
    if gpus > 0:
        room = int(gpus / resources.gpus_per_worker)
        workers = room if resources.workers == "auto" else resources.workers
        if workers > room or workers == 0:
            raise PermanentError(
                f"resources.workers: {workers or 1} of {resources.gpus_per_worker:g} GPUs each do not fit into a "
                f"cluster with {gpus:g}: ask for fewer."
            )
        return WorkerPlan(workers, resources.gpus_per_worker, 1.0, 1.0, 1, "cuda")
    # One core a worker; what is left reads and encodes, at least half a core a node.
    workers = max(1, int(cpus - nodes)) if resources.workers == "auto" else resources.workers
    share = max(0.01, min(1.0, round((cpus - TASK_CPUS * nodes) / workers - 0.005, 2)))
    return WorkerPlan(workers, 0.0, share, min(TASK_CPUS, cpus / 2), max(1, int(cpus // workers)), "cpu")
