"""The pool of worker actors: started, replaced when they die, let go at the end."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from jointdit.errors import JointDiTError, ModelError, PermanentError
from pipelines.cluster import WorkerPlan
from pipelines.store_errors import mask_secrets

START_SECONDS = 1800.0  # loading tens of gigabytes from a cold disk takes minutes
START_DEATHS = 3  # in a row, before they are more than bad luck
STOP_SECONDS = 10.0
logger = logging.getLogger(__name__)


class Worker:
    """One actor, and what the driver knows of it."""

    def __init__(self, number: int, actor: Any) -> None:
        self.number = number
        self.actor = actor
        self.ready = actor.set_up.remote()
        self.is_up = False
        self.started = time.monotonic()


class WorkerPool:
    """As many workers as the plan says; `worker_class(context, device, threads)` is what runs in each."""

    def __init__(self, context_ref: Any, plan: WorkerPlan, worker_class: type) -> None:
        self.plan = plan
        options = {"num_gpus": plan.num_gpus, "num_cpus": plan.num_cpus, "max_restarts": 0, "max_task_retries": 0}
        actor_class = ray.remote(**options)(worker_class)
        self._start_actor: Callable[[], Any] = lambda: actor_class.remote(context_ref, plan.device, plan.threads)
        self._started = 0
        self._deaths_at_start = 0
        self.workers = [self._start() for _ in range(plan.workers)]

    def _start(self) -> Worker:
        self._started += 1
        return Worker(self._started, self._start_actor())

    def check_start(self, worker: Worker) -> BaseException | None:
        """Note that a worker is up; the error if it failed to start, None if it is up or still loading."""
        if worker.is_up:
            return None
        if not is_done(worker.ready):
            others_are_up = any(other.is_up for other in self.workers)  # then it may wait for room as long as it likes
            if others_are_up or time.monotonic() - worker.started < START_SECONDS:
                return None
            return TimeoutError(
                f"it did not start within {START_SECONDS:g} seconds: check with `ray status` that "
                f"{self.plan.num_gpus:g} GPUs and {self.plan.num_cpus:g} CPUs are free for each worker"
            )
        error = failure_of(worker.ready)
        if error is None:
            worker.is_up, self._deaths_at_start = True, 0
        return error

    def replace(self, worker: Worker, error: BaseException) -> Worker:
        """Take a dead or broken worker out and start another in its place.

        Raises:
            PermanentError: it failed in a way that the next one will too, or the third in a row died at its start.
        """
        ray.kill(worker.actor, no_restart=True)
        if not worker.is_up:
            self._deaths_at_start += 1
            cause = unwrap(error)
            if isinstance(cause, PermanentError):
                raise cause
            if self._deaths_at_start >= START_DEATHS:
                raise ModelError(f"{START_DEATHS} workers in a row failed to start: {in_one_line(cause)}.") from error
        logger.warning("worker %d is replaced: %s", worker.number, in_one_line(error))
        replacement = self._start()
        self.workers[self.workers.index(worker)] = replacement
        return replacement

    def close(self) -> None:
        """Let the workers release their GPUs, then end them."""
        leaving = [worker.actor.destroy.remote() for worker in self.workers if worker.is_up]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=STOP_SECONDS)
        for worker in self.workers:
            ray.kill(worker.actor, no_restart=True)


def is_done(reference: Any) -> bool:
    """Whether a reference has its result or its error."""
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


def count_done(references: list[Any]) -> int:
    """How many of some references have their result or their error."""
    if not references:
        return 0
    return len(ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)[0])


def failure_of(reference: Any) -> BaseException | None:
    """The error of a finished reference, or None. For small results only: it is fetched."""
    try:
        ray.get(reference, timeout=60)
    except (RayError, JointDiTError) as error:
        return error
    return None


def unwrap(error: BaseException) -> BaseException:
    """What went wrong in the first task of a chain: Ray wraps it once for each task that depends on it."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def in_one_line(error: BaseException) -> str:
    """An error's text for a sentence or a log line."""
    text = " ".join(str(error).split())
    if isinstance(error, ActorDiedError) and (exit_type := re.search(r"Worker exit type: (\w+)", text)):
        text = f"its process died unexpectedly ({exit_type[1]})"
    return mask_secrets(text)[:300].rstrip(".")
