"""What the engine asks of the system that runs its tasks and workers.

`ray_executor.py` is Ray. `jobs/tools/bench/simulated.py` is a cluster without processes, on a clock of its own.
The engine reads the time from the executor only, so both run the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.engine.cluster import ClusterState, WorkerPlan
from pipelines.engine.metrics import Values


class Result:
    """The result of a task or call, small enough for the driver. It is set once, possibly by another thread."""

    __slots__ = ("error", "is_done", "owner", "reference", "value", "wakes")

    def __init__(self, reference: Any, owner: Any, wakes: bool = True) -> None:
        """`owner`: the attempt or worker that waits for it. `wakes`: whether its end ends a wait."""
        self.reference, self.owner, self.wakes = reference, owner, wakes
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_done = False

    def set(self, value: Any, error: BaseException | None = None) -> None:
        """Set the value or the error."""
        self.value, self.error = value, error
        self.is_done = True  # last: a reader that sees it sees the value

    @property
    def has_succeeded(self) -> bool:
        """Whether it is a value."""
        return self.is_done and self.error is None


@dataclass(frozen=True)
class Task:
    """A function that runs in another process, and what it needs there."""

    function: Callable[..., Any]
    cpus: float
    labels: tuple[tuple[str, str], ...] = ()  # of the nodes that may run it
    name: str | None = None  # None: the function's


class Exporter(Protocol):
    """Exports the totals of a run."""

    def export(self, values: Values) -> None:
        """Export the totals (metrics.py)."""


class Executor(Protocol):
    """Runs tasks and workers. References stand for objects in the cluster, which the driver does not fetch."""

    def now(self) -> float:
        """Return the seconds of a monotonic clock."""

    def put(self, value: Any) -> Any:
        """Store a value for tasks and workers; return its reference."""

    def submit(self, task: Task, returns: int, *arguments: Any) -> list[Any]:
        """Submit a task with `returns` results; return their references. Nothing is retried."""

    def start(self, plan: WorkerPlan, worker_class: type, *arguments: Any) -> Any:
        """Start an actor `worker_class(*arguments)` with the resources of a plan; return its handle."""

    def call(self, actor: Any, method: str, returns: int, *arguments: Any) -> list[Any]:
        """Call a method of an actor, behind its earlier calls; return the references of its `returns` results."""

    def watch(self, reference: Any, owner: Any, wakes: bool = True) -> Result:
        """Return the result of a reference, which `wait` reports once it is done. It must be small."""

    def wait(self, seconds: float) -> list[Result]:
        """Wait until a watched result that wakes is done, at most `seconds`; return all that are done since last time.

        Parts of a chain do not wake: the end of the chain starts its next step.
        """

    def get(self, reference: Any) -> Any:
        """Fetch a small object that is ready. Raises the error of its task, or of a lost object."""

    def cancel(self, result: Result) -> None:
        """Cancel a task that has not started."""

    def kill(self, actor: Any) -> None:
        """End the process of an actor."""

    def cluster_state(self, plan: WorkerPlan) -> ClusterState | None:
        """Return the state of the cluster; None while its head does not answer.

        Raises:
            PermanentError: the head has been silent for too long.
        """

    def exporter(self, dataset: str) -> Exporter:
        """Return an exporter of metrics whose label `dataset` is this name."""
