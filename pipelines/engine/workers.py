"""The pool of worker actors: started, replaced when they die, let go at the end."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from jointdit.errors import ModelError, PermanentError
from pipelines.engine.cluster import ClusterState, WorkerPlan
from pipelines.engine.faults import failure_of, in_one_line, is_done, unwrap
from pipelines.engine.usage import Usage

START_DEATHS = 3  # in a row, before they are more than bad luck
STOP_SECONDS = 10.0
logger = logging.getLogger(__name__)


class Worker:
    """One actor, and what the driver knows of it."""

    def __init__(self, number: int, actor: Any) -> None:
        self.number = number
        self.actor = actor
        self.placed = actor.node.remote()
        self.ready = actor.set_up.remote()
        self.node: str | None = None  # Ray's id, once it has been placed
        self.is_up = False
        self.is_leaving = False  # its node is about to go: no new work
        self.batch_size = 0  # after halvings for want of memory; 0 before it has generated anything
        self.started = time.monotonic()


class WorkerPool:
    """As many workers as the plan says and the cluster holds; `worker_class(context, device, threads)` runs in each."""

    def __init__(self, context_ref: Any, plan: WorkerPlan, worker_class: type, start_seconds: float) -> None:
        self.plan, self.start_seconds = plan, start_seconds
        options = {"num_gpus": plan.num_gpus, "num_cpus": plan.num_cpus, "max_restarts": 0, "max_task_retries": 0}
        actor_class = ray.remote(**options, scheduling_strategy="SPREAD")(worker_class)
        self._start_actor: Callable[[], Any] = lambda: actor_class.remote(context_ref, plan.device, plan.threads)
        self._started = 0
        self._held_seconds = self._busy_seconds = 0.0  # of workers that are gone; of samples that were finished
        self._starting_seconds = 0.0  # of workers that came up
        self._deaths_in_a_row = {"start": 0, "first batch": 0}
        self.workers: list[Worker] = []

    def fill(self, room: int, shards: int) -> list[Worker]:
        """Start what is missing, as far as there is room and need; returns those that are too many.

        Room can shrink with the nodes. Workers must leave some for read and finish tasks, or nothing goes on; those
        with a GPU leave enough, and end with their nodes alone. But of them there are no more than shards to make, and
        none goes on waiting for a GPU that is not needed any more: a cluster may start nodes for it.
        """
        staying = [worker for worker in self.workers if not worker.is_leaving]
        wanted = max(1, room if self.plan.follows else min(self.plan.workers, room))
        if self.plan.num_gpus > 0:
            wanted = min(wanted, max(1, shards))
        for _ in range(wanted - len(staying)):
            self._started += 1
            self.workers.append(Worker(self._started, self._start_actor()))
        by_use = sorted(staying, key=lambda worker: (worker.is_up, worker.node is not None), reverse=True)
        return [worker for worker in by_use[wanted:] if self.plan.num_gpus == 0 or worker.node is None]

    def check_start(self, worker: Worker) -> BaseException | None:
        """Note that a worker is up; the error if it failed to start, None if it is up or still loading."""
        if worker.is_up:
            return None
        if worker.node is None and is_done(worker.placed) and failure_of(worker.placed) is None:
            worker.node, worker.started = ray.get(worker.placed, timeout=STOP_SECONDS), time.monotonic()
        if not is_done(worker.ready):
            # Without a place it may wait for room as long as others work; with one, it is loading, or hangs.
            may_wait = worker.node is None and any(other.is_up for other in self.workers)
            if may_wait or time.monotonic() - worker.started < self.start_seconds:
                return None
            if worker.node is not None:
                return TimeoutError(f"it did not load the model within {self.start_seconds:g} seconds")
            return TimeoutError(
                f"it did not start within {self.start_seconds:g} seconds: check with `ray status` that "
                f"{self.plan.num_gpus:g} GPUs and {self.plan.num_cpus:g} CPUs are free for each worker"
            )
        error = failure_of(worker.ready)
        if error is None:
            worker.is_up, self._deaths_in_a_row["start"] = True, 0
            self._starting_seconds += time.monotonic() - worker.started
        return error

    def generated(self, worker: Worker, batch_size: int, planned: int) -> None:
        """Note that a worker has proved itself, and what it learned of its memory."""
        self._deaths_in_a_row["first batch"] = 0
        if batch_size < (worker.batch_size or planned):
            logger.warning(
                "worker %d makes batches of %d from now on: no more fit its memory", worker.number, batch_size
            )
        worker.batch_size = batch_size

    def was_busy(self, seconds: float) -> None:
        """Count the time that the model took for a part."""
        self._busy_seconds += seconds

    def states(self) -> Counter[str]:
        """How many workers are up, starting and leaving."""
        return Counter("leaving" if w.is_leaving else "up" if w.is_up else "starting" for w in self.workers)

    def usage(self) -> Usage:
        """What the workers of this pool have taken of the cluster until now."""
        now = time.monotonic()
        held = sum(now - worker.started for worker in self.workers if worker.node is not None)
        gpus, cpus = self.plan.num_gpus, self.plan.num_cpus
        return Usage(self._held_seconds + held, self._busy_seconds, gpus, cpus, self._starting_seconds)

    def take_out(self, worker: Worker, error: BaseException, is_its_own: bool) -> None:
        """Take a dead or broken worker out; `is_its_own`: it never did anything, and no shard or node is to blame.

        Raises:
            PermanentError: it failed in a way that the next one will too, or the third in a row came to nothing.
        """
        self.retire(worker)
        logger.warning("worker %d is gone: %s", worker.number, in_one_line(error))
        if not is_its_own:
            return
        cause = unwrap(error)
        if isinstance(cause, PermanentError):
            raise cause
        when = "first batch" if worker.is_up else "start"
        self._deaths_in_a_row[when] += 1
        if self._deaths_in_a_row[when] >= START_DEATHS:
            what = "at their first batch" if worker.is_up else "to start"
            raise ModelError(f"{START_DEATHS} workers in a row failed {what}: {in_one_line(cause)}.") from error

    def retire(self, worker: Worker) -> None:
        """Take a worker out and end its process."""
        self.workers.remove(worker)
        if worker.node is not None:
            self._held_seconds += time.monotonic() - worker.started
        ray.kill(worker.actor, no_restart=True)

    def mark_leaving(self, state: ClusterState) -> list[Worker]:
        """Workers on nodes that are about to go; each is returned once."""
        found = [w for w in self.workers if w.node in state.draining and not w.is_leaving]
        for worker in found:
            worker.is_leaving = True
        return found

    def close(self) -> None:
        """Let the workers release their GPUs, then end them. A Ray that is gone has ended them already."""
        try:
            leaving = [worker.actor.destroy.remote() for worker in self.workers if worker.is_up]
            if leaving:
                ray.wait(leaving, num_returns=len(leaving), timeout=STOP_SECONDS)
            for worker in self.workers:
                ray.kill(worker.actor, no_restart=True)
        except RayError as error:
            logger.warning("the workers could not be let go: %s", in_one_line(error))
