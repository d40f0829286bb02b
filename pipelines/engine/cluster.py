"""Connect to a Ray cluster or start one, plan its workers, and watch it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jointdit.errors import PermanentError
from pipelines.spec.job import ResourcesSpec

CONNECT_SECONDS = 10.0
TASK_CPUS = 0.25  # per read and finish task, on a cluster without GPUs
TASK_SHARE = 0.1  # of a node's CPUs is kept for tasks, at least for two
CPU_WORKER_BYTES = 1.5e9  # torch and a small model
HEAD_SECONDS = 30.0  # until a head without an answer stops the run; Ray itself ends the process after 60
HEAD_ANSWER_SECONDS = 2.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers a run has, and the resources of each one."""

    workers: int
    num_gpus: float
    num_cpus: float
    task_cpus: float  # per read and finish task
    threads: int  # of torch, on CPU
    device: str
    follows: bool = False  # the number of workers follows that of the GPUs; otherwise workers wait for a GPU
    store_bytes: float = 0.0  # of the object stores of all nodes; 0: unknown


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Connect to Ray: use the open connection, the cluster at RAY_ADDRESS, or start a local cluster.

    A local cluster has token authentication with a generated token, and no dashboard.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    local = not address
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray warns without it
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # faults are read from a chain's last reference
        "RAY_worker_niceness": "0",  # with Ray's default of 15, any other process on the machine starves the job
        # With Ray's default of one second, nearly every task started a process and imported its modules (measured).
        "RAY_idle_worker_killing_time_threshold_ms": "60000",
    }
    if local:
        os.environ["RAY_AUTH_MODE"] = "token"  # always: without it, everyone who reaches Ray can run code
    if local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        defaults["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)  # before the first import of Ray, which reads them
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
    except Exception as error:  # Ray raises a bare Exception if it cannot start
        where = "a local Ray cannot be started" if local else f"the Ray cluster at {address} cannot be reached"
        raise PermanentError(f"{where}: {' '.join(str(error).split())[:300]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError at once if nothing listens at an address; Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def plan_workers(resources: ResourcesSpec) -> WorkerPlan:
    """Plan workers for all GPUs of the cluster, or for its CPUs if it has no GPU.

    `auto` uses GPUs as their nodes join and leave, and requests none. A number on `cuda` is requested at once: workers
    without a GPU wait, which makes an autoscaler start nodes.

    On CPUs, the workers of each node reserve all but the tasks' share. So read and finish tasks always find room, also
    if a second driver runs on the same cluster: its workers wait until these have ended.

    Raises:
        PermanentError: no node has the labels of the tasks, the GPUs cannot hold the workers, or `auto` on `cuda` finds
            no GPU.
    """
    import ray

    _check_labels(resources)
    total = ray.cluster_resources()
    nodes, gpus, store = ray.nodes(), total.get("GPU", 0.0), total.get("object_store_memory", 0.0)
    if resources.device == "cuda" or (resources.device == "auto" and gpus > 0):
        room = _gpu_room(nodes, resources.gpus_per_worker)
        workers = room if resources.workers == "auto" else resources.workers
        if workers < 1 and resources.device == "cuda":
            raise PermanentError(
                "resources.workers: auto uses the GPUs of the cluster and requests none, and the cluster has none yet: "
                "give the number of workers that it may grow to."
            )
        if resources.device == "auto" and not 1 <= workers <= room:
            raise PermanentError(
                f"resources: {max(1, workers)} workers of {resources.gpus_per_worker:g} GPUs do not fit into a cluster "
                f"with {gpus:g}: ask for fewer, or set resources.device to cuda for one that grows."
            )
        spare = total.get("CPU", 0.0) - workers  # for tasks of one CPU each
        cpus, follows = 1.0 if spare >= 2 else 0.0, resources.workers == "auto"
        return WorkerPlan(workers, resources.gpus_per_worker, cpus, 1.0, 1, "cuda", follows, store)
    cpus_of_nodes = _cpus_of_nodes(nodes) or [1.0]
    most = max(1, min(int(sum(cpus_of_nodes)), int(total.get("memory", 0.0) / CPU_WORKER_BYTES)))
    workers = most if resources.workers == "auto" else resources.workers
    share = _share(cpus_of_nodes, workers)
    return WorkerPlan(workers, 0.0, share, TASK_CPUS, max(1, int(share)), "cpu", store_bytes=store)


def _check_labels(resources: ResourcesSpec) -> None:
    """Refuse labels that no node has: the tasks would wait forever."""
    import ray

    labels = resources.task_labels
    if labels and not any(node["Alive"] and labels.items() <= node["Labels"].items() for node in ray.nodes()):
        shown = ", ".join(f"{name}={value}" for name, value in labels.items())
        raise PermanentError(
            f"resources.task_labels: no node of the cluster has {shown}: start Ray there with --labels, or leave it "
            "out."
        )


def _staying(nodes: Sequence[dict[str, Any]], without: Collection[str]) -> list[dict[str, Any]]:
    return [node for node in nodes if node["Alive"] and node["NodeID"] not in without]


def _cpus_of_nodes(nodes: Sequence[dict[str, Any]], without: Collection[str] = ()) -> list[float]:
    cpus_of_nodes = [node["Resources"].get("CPU", 0.0) for node in _staying(nodes, without)]
    return [cpus for cpus in cpus_of_nodes if cpus > 0]


def _gpu_room(nodes: Sequence[dict[str, Any]], share: float, without: Collection[str] = ()) -> int:
    """How many workers with `share` of one GPU fit. Rests of two GPUs do not add up to a share."""
    gpus = sum(int(node["Resources"].get("GPU", 0.0)) for node in _staying(nodes, without))
    return gpus * math.floor(1 / share + 1e-6)


def _room(cpus: float) -> float:
    """The CPUs of a node that workers may use."""
    return cpus - max(TASK_SHARE * cpus, 2 * TASK_CPUS)


def _share(nodes: Sequence[float], workers: int) -> float:
    """The largest number of CPUs per worker with which all workers fit beside the tasks, to two decimals."""
    shares = {math.floor(100 * _room(cpus) / count + 1e-6) / 100 for cpus in nodes for count in range(1, workers + 1)}
    fitting = (share for share in shares if share > 0 and _fitting(nodes, share) >= workers)
    return max(fitting, default=0.01)


def _fitting(nodes: Sequence[float], share: float) -> int:
    return sum(max(0, math.floor(_room(cpus) / share + 1e-6)) for cpus in nodes)


@dataclass(frozen=True)
class ClusterState:
    """The current state of the cluster."""

    room: int  # workers that fit beside the tasks on nodes that stay, and those that may wait for a GPU
    draining: frozenset[str]  # ids of nodes that are about to leave: no new work there
    store_bytes: float = 0.0  # of the object stores of nodes that stay


class ClusterWatch:
    """Reads the state of the cluster, and notices when its head stays silent."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self._answered = time.monotonic()

    def current_state(self) -> ClusterState | None:
        """Return the state of the cluster; None while its head does not answer.

        Raises:
            PermanentError: the head has not answered for HEAD_SECONDS.
        """
        import ray
        from ray.exceptions import RpcError

        head = getattr(ray._private.worker.global_worker, "gcs_client", None)
        if head is None:
            return None  # a connection through ray:// has no client of the head
        try:
            # Ray's other calls wait forever for a head that is gone, and end the process after 60 s.
            head.check_alive([], timeout=HEAD_ANSWER_SECONDS)
            self._answered = time.monotonic()
        except RpcError as error:
            silent = time.monotonic() - self._answered
            if silent < HEAD_SECONDS:
                return None
            raise PermanentError(
                f"the head of the Ray cluster has not answered for {silent:.0f} seconds: check it with "
                "`ray status`, then run again; what is committed stays."
            ) from error
        draining = frozenset(ray._private.state.state.get_draining_nodes())
        nodes = ray.nodes()
        store = sum(node["Resources"].get("object_store_memory", 0.0) for node in _staying(nodes, draining))
        if self.plan.follows:
            return ClusterState(_gpu_room(nodes, self.plan.num_gpus, draining), draining, store)
        if self.plan.num_gpus > 0:
            return ClusterState(self.plan.workers, draining, store)  # a worker that waits for a GPU takes no room
        return ClusterState(_fitting(_cpus_of_nodes(nodes, draining), self.plan.num_cpus), draining, store)
