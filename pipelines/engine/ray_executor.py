"""The executor on Ray.

Ray calls back when a watched result is ready, so waiting costs nothing per task in flight. The callbacks come from
`ObjectRef.future`, which fetches the result. Every SWEEP_SECONDS, `ray.wait` looks for results whose callback was lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from jointdit.errors import JointDiTError
from pipelines.engine.cluster import ClusterState, ClusterWatch, WorkerPlan
from pipelines.engine.executor import Result, Task
from pipelines.engine.metrics import Metrics

GET_SECONDS = 60.0  # to fetch a small result that is ready
SWEEP_SECONDS = 30.0


class RayExecutor:
    """Runs tasks and workers on the connected Ray cluster."""

    def __init__(self) -> None:
        self._remote: dict[Task, Any] = {}
        self._actors: dict[type, Any] = {}
        self._watch: ClusterWatch | None = None
        self._done: deque[Result] = deque()  # to be returned by `wait`
        self._wake = threading.Event()
        self._pending: dict[Any, Result] = {}  # reference -> result
        self._lock = threading.Lock()
        self._swept = time.monotonic()

    def now(self) -> float:
        """Return the seconds of this machine's monotonic clock."""
        return time.monotonic()

    def put(self, value: Any) -> Any:
        """Store a value in Ray's object store."""
        return ray.put(value)

    def submit(self, task: Task, returns: int, *arguments: Any) -> list[Any]:
        """Submit a task, without retries by Ray."""
        if task not in self._remote:
            options: dict[str, Any] = {"num_cpus": task.cpus, "max_retries": 0}
            if task.labels:
                options["label_selector"] = dict(task.labels)
            if task.name is not None:
                options["name"] = task.name
            self._remote[task] = ray.remote(**options)(task.function)
        references = self._remote[task].options(num_returns=returns).remote(*arguments)
        return references if returns > 1 else [references]

    def start(self, plan: WorkerPlan, worker_class: type, *arguments: Any) -> Any:
        """Start an actor, which Ray never restarts."""
        if worker_class not in self._actors:
            options = {"num_gpus": plan.num_gpus, "num_cpus": plan.num_cpus, "max_restarts": 0, "max_task_retries": 0}
            self._actors[worker_class] = ray.remote(**options, scheduling_strategy="SPREAD")(worker_class)
        return self._actors[worker_class].remote(*arguments)

    def call(self, actor: Any, method: str, returns: int, *arguments: Any) -> list[Any]:
        """Call a method of an actor."""
        references = getattr(actor, method).options(num_returns=returns).remote(*arguments)
        return references if returns > 1 else [references]

    def watch(self, reference: Any, owner: Any, wakes: bool = True) -> Result:
        """Return the result of a reference; Ray calls back when it is done."""
        result = Result(reference, owner, wakes)
        with self._lock:
            self._pending[reference] = result
        reference.future().add_done_callback(lambda future: self._take(result, future))
        return result

    def _take(self, result: Result, future: Future[Any]) -> None:
        error = future.exception()
        self._set(result, None if error is not None else future.result(), error)

    def _set(self, result: Result, value: Any, error: BaseException | None) -> None:
        with self._lock:
            if self._pending.pop(result.reference, None) is None:
                return  # it was found by the sweep before
            result.set(value, error)
        self._done.append(result)
        if result.wakes:
            self._wake.set()

    def wait(self, seconds: float) -> list[Result]:
        """Return the results that are done since the last call."""
        self._sweep()
        self._wake.wait(seconds)
        self._wake.clear()
        return [self._done.popleft() for _ in range(len(self._done))]

    def _sweep(self) -> None:
        """Find results that are ready although Ray has not called back."""
        if time.monotonic() - self._swept < SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        with self._lock:
            pending = dict(self._pending)
        if not pending:
            return
        ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0, fetch_local=False)
        for reference in ready:
            try:
                self._set(pending[reference], ray.get(reference, timeout=GET_SECONDS), None)
            except GetTimeoutError:
                continue  # the next sweep tries again
            except (RayError, JointDiTError) as error:
                self._set(pending[reference], None, error)

    def get(self, reference: Any) -> Any:
        """Fetch a small object that is ready."""
        return ray.get(reference, timeout=GET_SECONDS)

    def cancel(self, result: Result) -> None:
        """Cancel a task that has not started."""
        ray.cancel(result.reference)

    def kill(self, actor: Any) -> None:
        """End the process of an actor."""
        ray.kill(actor, no_restart=True)

    def cluster_state(self, plan: WorkerPlan) -> ClusterState | None:
        """Return the state of the Ray cluster (cluster.py)."""
        if self._watch is None:
            self._watch = ClusterWatch(plan)
        return self._watch.current_state()

    def exporter(self, dataset: str) -> Metrics:
        """Return the exporter of metrics through Ray."""
        return Metrics(dataset)
