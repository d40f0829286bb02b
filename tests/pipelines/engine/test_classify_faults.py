"""What each error of Ray, of the store and of our own means. The errors are real objects, wrapped as Ray wraps them."""

from __future__ import annotations

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)

from jointdit.errors import ModelError, PermanentError
from pipelines.engine.deadline import DeadlineExceeded
from pipelines.engine.faults import classify, is_node_loss
from pipelines.stages.generate import DeviceFault
from pipelines.store.errors import CommitFailed, CommitUnknown, TransientError


def wrapped(cause: Exception) -> RayTaskError:
    """As it comes from a task that raised it, or that was given its result."""
    error = RayTaskError("a_task", "Traceback ...", cause)
    return RayTaskError("finish", "Traceback ...", error.as_instanceof_cause()).as_instanceof_cause()


def actor_died(**context) -> ActorDiedError:
    """As Ray makes it from what the head of the cluster knows of a death."""
    return ActorDiedError(ActorDiedErrorContext(actor_id=b"0" * 16, **context))


NODE_DIED = actor_died(error_message="The actor died because its node has died. Node Id: a0ce7e")
PREEMPTED = actor_died(node_death_info=NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED))


@pytest.mark.parametrize(
    ("stage", "error", "kind", "worker_is_gone"),
    [
        ("read", wrapped(TransientError("503 SlowDown")), "store", False),
        ("finish", wrapped(CommitFailed("refused")), "store", False),
        ("finish", wrapped(CommitUnknown("lost")), "store", False),
        ("finish", wrapped(DeadlineExceeded("finishing took longer than 900 seconds.")), "timeout", False),
        ("finish", wrapped(ObjectLostError("aa", None, "")), "object", False),
        ("read", wrapped(ObjectStoreFullError("full")), "object", False),
        ("generate", wrapped(DeviceFault("the GPU of a failed")), "device", True),
        ("generate", ActorDiedError(), "crash", True),
        ("generate", NODE_DIED, "node", True),
        ("generate", PREEMPTED, "node", True),
        ("generate", ActorUnavailableError("no answer", b"0" * 16), "worker", True),
        ("generate", OutOfMemoryError("killed"), "memory", True),
        ("generate", wrapped(ObjectLostError("aa", None, "")), "object", False),
        ("read", NodeDiedError("gone"), "node", False),
        ("read", WorkerCrashedError(), "crash", False),
        ("finish", WorkerCrashedError(), "crash", False),
        ("finish", OutOfMemoryError("killed"), "memory", False),
        ("read", wrapped(MemoryError()), "memory", False),
    ],
)
def test_every_fault_has_its_kind(stage, error, kind: str, worker_is_gone: bool) -> None:
    fault = classify(stage, error, "shard")
    assert (fault.kind, fault.worker_is_gone, fault.stage) == (kind, worker_is_gone, stage)


def test_permanent_errors_keep_their_sentence() -> None:
    with pytest.raises(ModelError, match=r"^model.name x has no weights\.$"):
        classify("generate", wrapped(ModelError("model.name x has no weights.")), "shard")


def test_an_error_of_no_known_kind_stops_the_run() -> None:
    with pytest.raises(PermanentError, match=r"^shard s failed in read with an error of no known kind, KeyError: 'x'"):
        classify("read", wrapped(KeyError("x")), "s")


def test_workers_that_died_with_their_node_did_not_fail_to_start() -> None:
    assert [is_node_loss(e) for e in (NODE_DIED, PREEMPTED, NodeDiedError("gone"))] == [True] * 3
    assert [is_node_loss(e) for e in (ActorDiedError(), OutOfMemoryError("killed"))] == [False] * 2
