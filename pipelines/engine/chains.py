"""The chain of Ray tasks that makes a shard: read -> generate, one call a part -> finish.

A chain is submitted without waiting, and the driver keeps only references. Ray retries nothing: a Ray retry would run
`finish` again with the same commit token. The driver retries the shard.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.engine.attempts import Attempt, Queue, Search
from pipelines.engine.deadline import deadline
from pipelines.engine.faults import GET_SECONDS, Stage, failure_of, is_done
from pipelines.engine.isolation import Bisection
from pipelines.engine.workers import Worker
from pipelines.ledger.entries import PlannedShard
from pipelines.records import SampleResult
from pipelines.stages.context import RunContext
from pipelines.stages.finish import Receipt, finish_shard, try_finish
from pipelines.stages.generate import PartSummary
from pipelines.stages.read import Isolation, ShardRows, read_shard, try_rows


class Chains:
    """Submits the steps of attempts."""

    def __init__(self, context: RunContext, context_ref: Any, task_cpus: float) -> None:
        self.context, self.context_ref = context, context_ref
        self.run = secrets.token_hex(4)  # begins the token of each commit of these chains
        options: dict[str, Any] = {"num_cpus": task_cpus, "max_retries": 0}
        if labels := context.spec.resources.task_labels:
            options["label_selector"] = dict(labels)
        # Names of few kinds: Ray counts and exports the tasks of each name for as long as the driver lives.
        self._read = ray.remote(**options, name="read")(_read)
        self._finish = ray.remote(**options, name="finish")(_finish)
        self._ahead: dict[str, tuple[Isolation, list[Any]]] = {}  # shard -> what its read was submitted with, and gives
        self._try_read = ray.remote(**options)(_try_read)
        self._try_finish = ray.remote(**options)(_try_finish)

    def read_ahead(self, entries: Sequence[tuple[PlannedShard, Isolation]]) -> None:
        """Submit the reads of shards that no worker has yet, and let go of those that are not among them any more."""
        before, self._ahead = self._ahead, {}
        for entry, isolation in entries:
            known = before.get(entry.shard.id)
            if known is None or known[0] != isolation:
                known = isolation, self._submit_read(entry, isolation)
            self._ahead[entry.shard.id] = known

    def start(self, worker: Worker, entry: PlannedShard, isolation: Isolation) -> Attempt:
        """Submit a whole chain, or what is missing of it; of one with suspects, only what comes before them."""
        before, found = self._ahead.pop(entry.shard.id, (isolation, None))
        read, rows, *parts = found if found and before == isolation else self._submit_read(entry, isolation)
        attempt = Attempt(entry, isolation, read, rows, parts)
        for _ in range(len(parts) - isolation.suspected(entry.samples)):
            self.generate_next(worker, attempt)
        if len(attempt.outputs) == len(parts):
            self.finish(attempt, isolation)
        return attempt

    def _submit_read(self, entry: PlannedShard, isolation: Isolation) -> list[Any]:
        """References of its summary, rows and parts."""
        count = isolation.parts(entry.samples, self.context.spec.model.batch_size)
        references: list[Any] = self._read.options(num_returns=count + 2).remote(self.context_ref, entry, isolation)
        return references

    def generate_next(self, worker: Worker, attempt: Attempt) -> None:
        """Submit the next part."""
        part = attempt.parts[len(attempt.outputs)]
        output, summary = worker.actor.generate.options(num_returns=2).remote(part)
        attempt.outputs.append(output)
        attempt.summaries.append(summary)

    def finish(self, attempt: Attempt, isolation: Isolation) -> None:
        """Submit finish; again with the same results, where it met a fault of its own."""
        attempt.finish_at, attempt.moved = None, time.monotonic()
        attempt.receipt = self._finish.remote(
            self.context_ref, attempt.entry, isolation.unfinishable, self.run, attempt.rows, *attempt.outputs
        )

    def search(self, attempt: Attempt, stage: Stage) -> None:
        """Begin to look for the rows of a shard that kill its reader, or the samples that kill its finish."""
        if stage == "read":
            ranges = [(number, span.start, span.stop) for number, span in enumerate(attempt.entry.shard.spans)]
            attempt.search = Search(stage, Bisection(ranges))
        else:
            samples = [sample for part in parts_of(attempt) for sample in part]
            attempt.search = Search(stage, Bisection([(0, 0, len(samples))]), samples)
        self.search_on(attempt)

    def search_on(self, attempt: Attempt) -> None:
        """Submit the next try of a search, if there is one."""
        search = attempt.search
        assert search is not None
        search.reference, search.try_at, search.submitted = None, None, time.monotonic()
        if search.bisection.current is None:
            return
        number, start, stop = search.bisection.current
        if search.stage == "read":
            search.reference = self._try_read.remote(self.context_ref, attempt.entry, number, start, stop)
        else:
            samples = frozenset(search.samples[start:stop])
            search.reference = self._try_finish.remote(
                self.context_ref, attempt.entry, samples, attempt.rows, *attempt.outputs
            )


def parts_of(attempt: Attempt) -> list[list[str]]:
    """The sample ids of each part of a chain that has been read."""
    summary: ReadSummary = ray.get(attempt.read, timeout=GET_SECONDS)
    return summary.parts


def seconds_of(attempt: Attempt, receipt: Receipt) -> dict[str, float]:
    """What each step of a finished chain took, in its own process; "finish" and "write" overlap (profile.py)."""
    read: ReadSummary = ray.get(attempt.read, timeout=GET_SECONDS)
    found: Counter[str] = Counter()
    for summary in summaries_of(attempt):
        found.update({"generate": summary.seconds, **summary.steps})
    finish = {"finish": receipt.seconds + receipt.commit_seconds}
    return {"read": read.seconds, **found, **finish, "write": receipt.write_seconds + receipt.commit_seconds}


def summaries_of(attempt: Attempt) -> list[PartSummary]:
    """What the worker said of each part of a finished chain."""
    summaries: list[PartSummary] = ray.get(attempt.summaries, timeout=GET_SECONDS)
    return summaries


def has_generated(attempts: Sequence[Attempt]) -> bool:
    """Whether any sample of some attempts has come out of their worker."""
    for attempt in attempts:
        for summary in attempt.summaries:
            if is_done(summary) and failure_of(summary) is None and ray.get(summary, timeout=GET_SECONDS).samples:
                return True
    return False


def at_work(attempts: Sequence[Attempt]) -> tuple[Attempt, list[str]] | None:
    """The attempt and sample ids a worker is at: the first call without a result whose input is there.

    Calls run in the order of their submission, so behind a chain that is still being read nothing is generated.
    """
    for attempt in attempts:
        if not is_done(attempt.read):
            return None
        if failure_of(attempt.read) is not None:
            continue
        for part, summary in zip(parts_of(attempt), attempt.summaries, strict=False):
            if not is_done(summary) or failure_of(summary) is not None:
                return (attempt, part) if part else None
    return None


def take_what_is_not_begun(queue: Queue) -> list[PlannedShard]:
    """Take attempts out of a worker's queue, all but the one it is at and those that only have to be finished.

    Their finish is cancelled. Their calls are not, because an actor waits in vain for a call that was cancelled before
    another one (Ray 2.60); a worker may go on with them until it is ended, a second later.
    """
    taken = []
    guilty = at_work(queue.attempts)
    for attempt in list(queue.attempts):
        attempt.note_progress()
        if not attempt.is_generated and not attempt.superseded and not (guilty and attempt is guilty[0]):
            queue.attempts.remove(attempt)
            taken.append(attempt.entry)
            if attempt.receipt is not None:
                ray.cancel(attempt.receipt)
    return taken


@dataclass(frozen=True)
class ReadSummary:
    """The small part of what a read task returns, so that the driver never fetches pixels to know of a fault."""

    parts: list[list[str]]  # sample ids
    seconds: float


def _read(context: RunContext, entry: PlannedShard, isolation: Isolation) -> tuple[Any, ...]:
    """The read task: its summary, the rows for finish, and each part as an object of its own, fetched by its worker."""
    started = time.monotonic()
    with deadline(context.spec.resources.stall_seconds, f"reading shard {entry.shard.id}"):
        rows, parts = read_shard(context, entry, isolation)
    ids = [[sample.id for sample in part] for part in parts]
    return (ReadSummary(ids, time.monotonic() - started), rows, *parts)


def _finish(
    context: RunContext,
    entry: PlannedShard,
    unfinishable: frozenset[str],
    run: str,
    rows: ShardRows,
    *parts: Sequence[SampleResult],
) -> Receipt:
    with deadline(context.spec.resources.stall_seconds, f"finishing shard {entry.shard.id}"):
        return finish_shard(context, entry, rows, *parts, unfinishable=unfinishable, run=run)


def _try_read(context: RunContext, entry: PlannedShard, span: int, start: int, stop: int) -> None:
    with deadline(context.spec.resources.stall_seconds, f"reading rows {start} to {stop}"):
        try_rows(context, entry, span, start, stop)


def _try_finish(
    context: RunContext, entry: PlannedShard, samples: frozenset[str], rows: ShardRows, *parts: Sequence[SampleResult]
) -> None:
    with deadline(context.spec.resources.stall_seconds, f"finishing {len(samples)} samples of {entry.shard.id}"):
        try_finish(context, samples, rows, *parts)
