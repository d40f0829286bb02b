"""The chain of Ray tasks that makes a shard (read, generate, finish).

A chain is submitted without waiting, and the driver keeps only references. Ray retries nothing: a retry by Ray would
run `finish` again with the same commit token. The driver retries the shard.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from pipelines.engine.attempts import Attempt, Phase, Queue, Search
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


class SubmittedRead(NamedTuple):
    """A read task in flight: what it was submitted with, and its references: summary, rows, then each part."""

    isolation: Isolation
    references: list[Any]


class Chains:
    """Submits the steps of attempts."""

    def __init__(self, context: RunContext, context_ref: Any, task_cpus: float) -> None:
        self.context, self.context_ref = context, context_ref
        self.run = secrets.token_hex(4)  # first characters of the token of each commit of these chains
        options: dict[str, Any] = {"num_cpus": task_cpus, "max_retries": 0}
        if labels := context.spec.resources.task_labels:
            options["label_selector"] = dict(labels)
        # Few different names: Ray counts and exports the tasks of each name for as long as the driver lives.
        self._read = ray.remote(**options, name="read")(_read)
        self._finish = ray.remote(**options, name="finish")(_finish)
        self._ahead: dict[str, SubmittedRead] = {}  # by shard
        self._try_read = ray.remote(**options)(_try_read)
        self._try_finish = ray.remote(**options)(_try_finish)

    def read_ahead(self, entries: Sequence[tuple[PlannedShard, Isolation]]) -> None:
        """Submit the reads of shards that have no worker yet, and release the reads of all other shards."""
        before, self._ahead = self._ahead, {}
        for entry, isolation in entries:
            known = before.get(entry.shard.id)
            if known is None or known.isolation != isolation:
                known = self._submit_read(entry, isolation)
            self._ahead[entry.shard.id] = known

    def start(self, worker: Worker, entry: PlannedShard, isolation: Isolation) -> Attempt:
        """Submit a whole chain; of a shard with suspects, only the parts before them."""
        read_before = self._ahead.pop(entry.shard.id, None)
        if read_before is None or read_before.isolation != isolation:
            read_before = self._submit_read(entry, isolation)
        read, rows, *parts = read_before.references
        attempt = Attempt(entry, isolation, read, rows, parts)
        for _ in range(len(parts) - isolation.suspected(entry.samples)):
            self._generate_next(worker, attempt)
        if len(attempt.outputs) == len(parts):
            self.finish(attempt, isolation)
        return attempt

    def submit_next(self, worker: Worker, attempt: Attempt, isolation: Isolation) -> None:
        """Submit the next part, or finish after the last one."""
        if len(attempt.outputs) < len(attempt.parts):
            self._generate_next(worker, attempt)
        else:
            self.finish(attempt, isolation)

    def finish(self, attempt: Attempt, isolation: Isolation) -> None:
        """Submit finish; again with the same results if it failed for a reason of its own."""
        attempt.submit(
            self._finish.remote(
                self.context_ref, attempt.entry, isolation.unfinishable, self.run, attempt.rows, *attempt.outputs
            )
        )

    def search(self, attempt: Attempt, stage: Stage) -> None:
        """Begin to search for the rows of a shard that kill its reader, or the samples that kill its finish."""
        if stage == "read":
            ranges = [(number, span.start, span.stop) for number, span in enumerate(attempt.entry.shard.spans)]
            attempt.begin_search(Search(stage, Bisection(ranges)))
        else:
            samples = [sample for part in parts_of(attempt) for sample in part]
            attempt.begin_search(Search(stage, Bisection([(0, 0, len(samples))]), samples))
        self.submit_try(attempt)

    def submit_try(self, attempt: Attempt) -> None:
        """Submit the next try of a search, if there is one."""
        search = attempt.search
        assert search is not None
        if search.bisection.current is None:
            return
        number, start, stop = search.bisection.current
        if search.stage == "read":
            attempt.add_try(self._try_read.remote(self.context_ref, attempt.entry, number, start, stop))
        else:
            samples = frozenset(search.samples[start:stop])
            attempt.add_try(
                self._try_finish.remote(self.context_ref, attempt.entry, samples, attempt.rows, *attempt.outputs)
            )

    def _submit_read(self, entry: PlannedShard, isolation: Isolation) -> SubmittedRead:
        count = isolation.parts(entry.samples, self.context.spec.model.batch_size)
        task = self._read.options(num_returns=count + 2)
        return SubmittedRead(isolation, task.remote(self.context_ref, entry, isolation))

    def _generate_next(self, worker: Worker, attempt: Attempt) -> None:
        part = attempt.parts[len(attempt.outputs)]
        output, summary = worker.actor.generate.options(num_returns=2).remote(part)
        attempt.add_part(output, summary)


def parts_of(attempt: Attempt) -> list[list[str]]:
    """The sample ids of each part of an attempt that has been read."""
    summary: ReadSummary = ray.get(attempt.read, timeout=GET_SECONDS)
    return summary.parts


def seconds_of(attempt: Attempt, receipt: Receipt) -> dict[str, float]:
    """Seconds that each step of a finished chain took in its own process; "finish" includes "write"."""
    read: ReadSummary = ray.get(attempt.read, timeout=GET_SECONDS)
    calls: Counter[str] = Counter()
    for summary in summaries_of(attempt):
        calls.update({"generate": summary.seconds, **summary.steps})
    finish = {"finish": receipt.seconds + receipt.commit_seconds}
    return {"read": read.seconds, **calls, **finish, "write": receipt.write_seconds + receipt.commit_seconds}


def summaries_of(attempt: Attempt) -> list[PartSummary]:
    """The summaries of the generated parts of an attempt."""
    summaries: list[PartSummary] = ray.get(attempt.summaries, timeout=GET_SECONDS)
    return summaries


def has_generated(attempts: Sequence[Attempt]) -> bool:
    """Whether any sample of these attempts was generated."""
    for attempt in attempts:
        for summary in attempt.summaries:
            if is_done(summary) and failure_of(summary) is None and ray.get(summary, timeout=GET_SECONDS).samples:
                return True
    return False


class CurrentCall(NamedTuple):
    """The call that a worker is busy with."""

    attempt: Attempt
    samples: list[str]  # ids


def current_call(attempts: Sequence[Attempt]) -> CurrentCall | None:
    """The first call without a result whose input has been read; None if the worker waits for input.

    Calls run in the order of their submission, so nothing is generated behind a chain that is still being read.
    """
    for attempt in attempts:
        if not is_done(attempt.read):
            return None
        if failure_of(attempt.read) is not None:
            continue
        for part, summary in zip(parts_of(attempt), attempt.summaries, strict=False):
            if not is_done(summary) or failure_of(summary) is not None:
                return CurrentCall(attempt, part) if part else None
    return None


def take_unstarted(queue: Queue) -> list[PlannedShard]:
    """Remove from a worker's queue the attempts that it has not started, and return their shards.

    Their finish is cancelled. Their calls are not: an actor waits forever for a call that was cancelled before another
    one (Ray 2.60). So the worker may run them until it is ended, a second later.
    """
    taken = []
    call = current_call(queue.attempts)
    for attempt in list(queue.attempts):
        attempt.note_progress()
        is_started = attempt.is_generated or (call is not None and attempt is call.attempt)
        if not is_started and not attempt.is_superseded:
            queue.attempts.remove(attempt)
            taken.append(attempt.entry)
            if attempt.phase is Phase.SUBMITTED:
                ray.cancel(attempt.awaited)
    return taken


@dataclass(frozen=True)
class ReadSummary:
    """The small part of a read task's result, so that the driver learns of a fault without fetching pixels."""

    parts: list[list[str]]  # sample ids
    seconds: float


def _read(context: RunContext, entry: PlannedShard, isolation: Isolation) -> tuple[Any, ...]:
    """The read task. Returns its summary, the rows for finish, and each part as an object of its own."""
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
