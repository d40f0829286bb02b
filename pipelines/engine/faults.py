"""Classify the error of a chain by the stage that failed first and the kind of fault.

    kind      cause                                                      reaction (dispatch.py)
    store     5xx, throttling, lost answer, commit that did not land     retry after a backoff
    timeout   a task exceeded its deadline                               retry after a backoff
    object    Ray lost an object, or had no memory for one               retry after a backoff
    node      a node died, was preempted, or is being drained            retry after a backoff on another worker
    worker    a worker cannot be reached                                 retry after a backoff on another worker
    device    a GPU failed                                               retry after a backoff on another worker
    memory    a process was killed because its node ran out of memory    as above; blame the shard if it persists
    crash     a process died or hung                                     blame the shard (isolation.py)

All kinds but crash are faults of the infrastructure: they have a budget of their own, and no row is blamed for them.
Any other error stops the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    WorkerCrashedError,
)

from jointdit.errors import PermanentError
from pipelines.engine.deadline import DeadlineExceeded
from pipelines.stages.generate import DeviceFault
from pipelines.store.errors import TransientError
from pipelines.store.safe_text import mask_secrets

if TYPE_CHECKING:
    from pipelines.engine.executor import Result

Stage = Literal["read", "generate", "finish"]
Kind = Literal["store", "timeout", "object", "node", "worker", "device", "memory", "crash"]
SETTLE_SECONDS = 10.0  # until every step of a failed chain has its error


@dataclass(frozen=True)
class Fault:
    """A fault that does not stop the run."""

    stage: Stage
    kind: Kind
    error: BaseException  # the first cause, unwrapped
    worker_is_gone: bool = False

    def __str__(self) -> str:
        return in_one_line(self.error)


def classify(stage: Stage, error: BaseException, shard: str) -> Fault:
    """Return the fault that an error of a stage stands for.

    Raises:
        PermanentError: a retry would give the same error, or the error is of no known kind.
    """
    cause = unwrap(error)
    if isinstance(cause, PermanentError):
        raise cause
    of_ray = isinstance(cause, RayError) and not isinstance(cause, RayTaskError)
    # An error raised inside the actor is wrapped; an unwrapped error of Ray about a call means that the actor is gone.
    gone = stage == "generate" and of_ray and cause is error and _is_death(cause)
    if isinstance(cause, DeviceFault):
        return Fault(stage, "device", cause, worker_is_gone=True)
    if isinstance(cause, DeadlineExceeded):
        return Fault(stage, "timeout", cause)
    if isinstance(cause, TransientError):
        return Fault(stage, "store", cause)
    if isinstance(cause, OutOfMemoryError | MemoryError):
        return Fault(stage, "memory", cause, gone)
    if isinstance(cause, NodeDiedError) or (isinstance(cause, ActorDiedError) and _died_with_its_node(cause)):
        return Fault(stage, "node", cause, gone)
    if isinstance(cause, ActorUnavailableError):
        return Fault(stage, "worker", cause, gone)
    if isinstance(cause, WorkerCrashedError | RayActorError):
        return Fault(stage, "crash", cause, gone)
    if isinstance(cause, TimeoutError):
        return Fault(stage, "timeout", cause)
    if of_ray:
        return Fault(stage, "object", cause, gone)
    raise PermanentError(
        f"shard {shard} failed in {stage} with an error of no known kind, {type(cause).__name__}: "
        f"{in_one_line(cause)}; what is committed stays."
    ) from error


def _is_death(error: BaseException) -> bool:
    return isinstance(error, RayActorError | OutOfMemoryError | NodeDiedError | WorkerCrashedError | RaySystemError)


def is_node_loss(error: BaseException) -> bool:
    """Whether the error means that a node died or can no longer be reached."""
    cause = unwrap(error)
    if isinstance(cause, ActorDiedError):
        return _died_with_its_node(cause)
    return isinstance(cause, ActorUnavailableError | NodeDiedError)


def _died_with_its_node(error: ActorDiedError) -> bool:
    return bool(error.preempted) or "its node has died" in error.error_msg


def first_failure(read: Result, summaries: Sequence[Result]) -> tuple[Stage, BaseException] | None:
    """Return (stage, error) of the first step before finish that failed; None if none has failed so far."""
    stages: list[tuple[Stage, Result]] = [("read", read), *(("generate", summary) for summary in summaries)]
    for stage, result in stages:
        if result.error is not None:
            return stage, result.error
    return None


def unwrap(error: BaseException) -> BaseException:
    """The error of the first task that failed: Ray wraps it once for each task that depends on it."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def in_one_line(error: BaseException) -> str:
    """The text of an error in one line, with secrets masked."""
    text = " ".join(str(error).split())
    if isinstance(error, ActorDiedError) and (exit_type := re.search(r"Worker exit type: (\w+)", text)):
        text = f"its process died unexpectedly ({exit_type[1]})"
    return mask_secrets(text)[:300].rstrip(".")
