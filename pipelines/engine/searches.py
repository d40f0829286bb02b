"""One step of the search for the rows that kill a reader or a finish process."""

from __future__ import annotations

from pipelines.engine.attempts import Attempt
from pipelines.engine.faults import classify
from pipelines.engine.flow import ABANDONED_AFTER, Flow


def step_search(flow: Flow, attempt: Attempt) -> None:
    """Take the result of the current try and submit the next one; after the last one, retry the shard or its finish.

    A try kills if its process dies, or if it does not end within ABANDONED_AFTER times stall_seconds.

    Raises:
        PermanentError: a try failed in another way, or the budget for infrastructure faults is used up.
    """
    search = attempt.search
    assert search is not None
    patience = ABANDONED_AFTER * flow.context.spec.resources.stall_seconds
    if attempt.awaited is not None:
        if attempt.awaited.is_done:
            error = attempt.awaited.error
            fault = None if error is None else classify(search.stage, error, attempt.shard)
            if fault is not None and fault.kind not in ("crash", "memory"):
                attempt.end_try(flow.now() + flow.budgets.charge(attempt.entry, fault))
                if search.stage == "finish" and fault.kind == "object":  # the results to try are lost
                    flow.remove(attempt)
                    flow.requeue(attempt.entry)
                return
            search.bisection.record(kills=fault is not None)
        elif flow.now() - attempt.moved > patience:
            search.bisection.record(kills=True)
        else:
            return
        attempt.end_try()
    killers = search.bisection.killers
    if search.bisection.current is not None:
        if flow.now() >= attempt.due:
            flow.chains.submit_try(attempt)
    elif search.stage == "read":
        flow.crashes.record_bisection(attempt.entry, "read", rows=killers)
        flow.remove(attempt)
        flow.requeue(attempt.entry)
    else:
        samples = [search.samples[position] for _, position in killers]
        flow.crashes.record_bisection(attempt.entry, "finish", samples=samples)
        flow.finish(attempt)
