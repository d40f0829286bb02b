"""The search for the rows that kill a reader or a finish process, one step at a time, so that nothing waits for it."""

from __future__ import annotations

import enum
import time

from pipelines.engine.attempts import Attempt
from pipelines.engine.chains import Chains
from pipelines.engine.faults import Fault, classify, failure_of, is_done
from pipelines.engine.isolation import Crashes


class SearchOutcome(enum.Enum):
    """What the driver does with the shard after a step of a search."""

    CONTINUE = enum.auto()
    RETRY_SHARD = enum.auto()  # the result is in the ledger, or the results to try are lost
    RETRY_FINISH = enum.auto()  # the result is in the ledger, and the generated parts are still there


def step_search(
    chains: Chains, crashes: Crashes, attempt: Attempt, patience: float
) -> tuple[SearchOutcome, Fault | None]:
    """Take the result of the current try and submit the next one.

    Returns what to do, and the fault of the infrastructure that the try met, if any. A try counts as a death if its
    process dies, or if it does not end within `patience` seconds.
    """
    search = attempt.search
    assert search is not None
    if attempt.awaited is not None:
        if is_done(attempt.awaited):
            error = failure_of(attempt.awaited)
            fault = None if error is None else classify(search.stage, error, attempt.shard)
            if fault is not None and fault.kind not in ("crash", "memory"):
                is_lost = search.stage == "finish" and fault.kind == "object"
                return (SearchOutcome.RETRY_SHARD if is_lost else SearchOutcome.CONTINUE), fault
            search.bisection.record(kills=fault is not None)
        elif time.monotonic() - attempt.moved > patience:
            search.bisection.record(kills=True)
        else:
            return SearchOutcome.CONTINUE, None
        attempt.end_try()
    if search.bisection.current is not None:
        if time.monotonic() >= attempt.due:
            chains.submit_try(attempt)
        return SearchOutcome.CONTINUE, None
    killers = search.bisection.killers
    if search.stage == "read":
        crashes.record_bisection(attempt.entry, "read", rows=killers)
        return SearchOutcome.RETRY_SHARD, None
    crashes.record_bisection(attempt.entry, "finish", samples=[search.samples[position] for _, position in killers])
    return SearchOutcome.RETRY_FINISH, None
