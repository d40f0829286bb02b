"""The search for the rows that kill a reader or a finish process, a step at a time, so that nobody waits for it."""

from __future__ import annotations

import enum
import time

from pipelines.engine.attempts import Attempt
from pipelines.engine.chains import Chains
from pipelines.engine.faults import Fault, classify, failure_of, is_done
from pipelines.engine.isolation import Crashes


class SearchOutcome(enum.Enum):
    """What is to be done with the shard now."""

    GOES_ON = enum.auto()
    SHARD_AGAIN = enum.auto()  # what was found is in the ledger, or the results to try are lost
    FINISH_AGAIN = enum.auto()  # what was found is in the ledger; the results are still there


def step_search(
    chains: Chains, crashes: Crashes, attempt: Attempt, patience: float
) -> tuple[SearchOutcome, Fault | None]:
    """Look at the current try and submit the next. (what to do, a fault of the infrastructure that a try met).

    A try that does not end within `patience` seconds counts as a death, as one does that ends with its process.
    """
    search = attempt.search
    assert search is not None
    if search.try_at is not None:
        if time.monotonic() >= search.try_at:
            chains.search_on(attempt)
        return SearchOutcome.GOES_ON, None
    if search.reference is not None:
        if is_done(search.reference):
            error = failure_of(search.reference)
            fault = None if error is None else classify(search.stage, error, attempt.shard)
            if fault is not None and fault.kind not in ("crash", "memory"):
                search.reference = None
                lost = search.stage == "finish" and fault.kind == "object"
                return (SearchOutcome.SHARD_AGAIN if lost else SearchOutcome.GOES_ON), fault
            search.bisection.tell(kills=fault is not None)
        elif time.monotonic() - search.submitted > patience:
            search.bisection.tell(kills=True)
        else:
            return SearchOutcome.GOES_ON, None
        chains.search_on(attempt)
    if search.bisection.current is not None:
        return SearchOutcome.GOES_ON, None
    found, attempt.search = search.bisection.found, None
    if search.stage == "read":
        crashes.record_bisection(attempt.entry, "read", rows=found)
        return SearchOutcome.SHARD_AGAIN, None
    crashes.record_bisection(attempt.entry, "finish", samples=[search.samples[position] for _, position in found])
    return SearchOutcome.FINISH_AGAIN, None
