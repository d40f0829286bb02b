"""The pool of worker actors: start them, replace those that die, end them."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from ray.exceptions import RayError

from jointdit.errors import ModelError, PermanentError
from pipelines.engine.cluster import ClusterState, WorkerPlan
from pipelines.engine.executor import Executor
from pipelines.engine.faults import in_one_line, unwrap
from pipelines.engine.usage import Usage

START_DEATHS = 3  # in a row, before the run stops
STOP_SECONDS = 10.0
logger = logging.getLogger(__name__)


class Worker:
    """One actor and its state, as the driver knows it."""

    def __init__(self, number: int, actor: Any, executor: Executor) -> None:
        self.number = number
        self.actor = actor
        (placed,), (ready,) = executor.call(actor, "node", 1), executor.call(actor, "set_up", 1)
        self.placed = executor.watch(placed, self)
        self.ready = executor.watch(ready, self)
        self.node: str | None = None  # Ray's id of the node, once the actor is placed
        self.is_up = False
        self.is_leaving = False  # its node is about to leave: no new work
        self.batch_size = 0  # that fits its memory; 0 before it has generated anything
        self.started = executor.now()


class WorkerPool:
    """The workers of a run, each an actor of `worker_class(context, device, threads)`."""

    def __init__(
        self, executor: Executor, context_ref: Any, plan: WorkerPlan, worker_class: type, start_seconds: float
    ) -> None:
        self.executor, self.plan, self.start_seconds = executor, plan, start_seconds
        self._context_ref, self._worker_class = context_ref, worker_class
        self._started = 0
        self._held_seconds = self._busy_seconds = 0.0  # of ended workers; of finished samples
        self._starting_seconds = 0.0  # of workers that are up
        self._deaths_in_a_row = {"start": 0, "first batch": 0}
        self.workers: list[Worker] = []

    def fill(self, room: int, shards: int) -> list[Worker]:
        """Start missing workers, as many as there is room and work for; returns surplus workers, to be ended.

        Room can shrink when nodes leave. Workers on CPUs must leave room for read and finish tasks. Workers on GPUs
        always do, and end only with their nodes; but there are never more of them than shards, and none keeps waiting
        for a GPU that is no longer needed, because a cluster may start nodes for it.
        """
        staying = [worker for worker in self.workers if not worker.is_leaving]
        count = max(1, room if self.plan.follows else min(self.plan.workers, room))
        if self.plan.num_gpus > 0:
            count = min(count, max(1, shards))
        for _ in range(count - len(staying)):
            self._started += 1
            arguments = (self._context_ref, self.plan.device, self.plan.threads)
            actor = self.executor.start(self.plan, self._worker_class, *arguments)
            self.workers.append(Worker(self._started, actor, self.executor))
        if len(staying) <= count:
            return []
        by_use = sorted(staying, key=lambda worker: (worker.is_up, worker.node is not None), reverse=True)
        return [worker for worker in by_use[count:] if self.plan.num_gpus == 0 or worker.node is None]

    def check_start(self, worker: Worker) -> BaseException | None:
        """Note whether a worker is up. Returns its error if it failed to start, None if it is up or still loading."""
        if worker.is_up:
            return None
        if worker.node is None and worker.placed.has_succeeded:
            worker.node, worker.started = worker.placed.value, self.executor.now()
        if not worker.ready.is_done:
            # Before its placement it may wait for room as long as other workers are up; after it, it loads or hangs.
            may_wait = worker.node is None and any(other.is_up for other in self.workers)
            if may_wait or self.executor.now() - worker.started < self.start_seconds:
                return None
            if worker.node is not None:
                return TimeoutError(f"it did not load the model within {self.start_seconds:g} seconds")
            return TimeoutError(
                f"it did not start within {self.start_seconds:g} seconds: check with `ray status` that "
                f"{self.plan.num_gpus:g} GPUs and {self.plan.num_cpus:g} CPUs are free for each worker"
            )
        if worker.ready.error is None:
            worker.is_up, self._deaths_in_a_row["start"] = True, 0
            self._starting_seconds += self.executor.now() - worker.started
        return worker.ready.error

    def generated(self, worker: Worker, batch_size: int, planned: int) -> None:
        """Note that a worker generated a part, and the batch size that fits its memory."""
        self._deaths_in_a_row["first batch"] = 0
        before = worker.batch_size or planned
        if batch_size < before:
            logger.warning("worker %d makes batches of %d: its memory holds no more", worker.number, batch_size)
        elif batch_size > before:
            logger.info("worker %d makes batches of %d again", worker.number, batch_size)
        worker.batch_size = batch_size

    def was_busy(self, seconds: float) -> None:
        """Count the time that the model took for a part."""
        self._busy_seconds += seconds

    def states(self) -> Counter[str]:
        """How many workers are up, starting and leaving."""
        return Counter("leaving" if w.is_leaving else "up" if w.is_up else "starting" for w in self.workers)

    def usage(self) -> Usage:
        """The use of all workers of this pool so far."""
        now = self.executor.now()
        held = sum(now - worker.started for worker in self.workers if worker.node is not None)
        gpus, cpus = self.plan.num_gpus, self.plan.num_cpus
        return Usage(self._held_seconds + held, self._busy_seconds, gpus, cpus, self._starting_seconds)

    def take_out(self, worker: Worker, error: BaseException, is_its_own: bool) -> None:
        """Remove a dead or broken worker; `is_its_own`: it generated nothing, and no shard or node caused the error.

        Raises:
            PermanentError: the next worker would fail with the same error, or it is the third in a row that failed.
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
            step = "at their first batch" if worker.is_up else "to start"
            raise ModelError(f"{START_DEATHS} workers in a row failed {step}: {in_one_line(cause)}.") from error

    def retire(self, worker: Worker) -> None:
        """Remove a worker and end its process."""
        self.workers.remove(worker)
        if worker.node is not None:
            self._held_seconds += self.executor.now() - worker.started
        self.executor.kill(worker.actor)

    def mark_leaving(self, state: ClusterState) -> list[Worker]:
        """Return the workers whose nodes are about to leave; each worker is returned once."""
        leaving = [w for w in self.workers if w.node in state.draining and not w.is_leaving]
        for worker in leaving:
            worker.is_leaving = True
        return leaving

    def close(self) -> None:
        """Let the workers release their GPUs, then end them. If Ray is gone, they have ended already."""
        try:
            references = [self.executor.call(worker.actor, "destroy", 1)[0] for worker in self.workers if worker.is_up]
            leaving = [self.executor.watch(reference, None) for reference in references]
            until = self.executor.now() + STOP_SECONDS
            while (left := until - self.executor.now()) > 0 and not all(result.is_done for result in leaving):
                self.executor.wait(left)
            for worker in self.workers:
                self.executor.kill(worker.actor)
        except RayError as error:
            logger.warning("the workers could not be ended: %s", in_one_line(error))
