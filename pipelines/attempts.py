"""Chains of tasks in flight, as the driver sees them: references, never pixels.

    read (task) -> parts -> worker.generate, a call a part (actor) -> finish (task): filter, encode, write, commit

A chain is submitted without waiting. Ray itself retries nothing: it would rerun `finish` with the same attempt.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from pipelines.context import RunContext
from pipelines.deadline import deadline
from pipelines.faults import GET_SECONDS, Stage, count_done, failure_of, is_done
from pipelines.finish import Receipt, finish_shard, try_finish
from pipelines.isolation import Bisection
from pipelines.ledger import PlannedShard
from pipelines.read import Isolation, ShardRows, read_shard, try_rows
from pipelines.records import SampleResult
from pipelines.worker import PartSummary
from pipelines.workers import Worker


@dataclass(eq=False)
class Search:
    """A bisection under way: one try at a time, in a process of its own."""

    stage: Stage
    bisection: Bisection
    samples: list[str] = field(default_factory=list)  # for finish: what the positions stand for
    reference: Any = None
    submitted: float = 0.0
    try_at: float | None = None  # after a fault of the store, by the driver's monotonic clock


@dataclass(eq=False)
class Attempt:
    """One chain in flight."""

    entry: PlannedShard
    isolation: Isolation
    read: Any  # of a ReadSummary
    rows: Any
    parts: list[Any]
    outputs: list[Any] = field(default_factory=list)
    summaries: list[Any] = field(default_factory=list)
    receipt: Any = None  # of finish; None while suspects are submitted one by one, and until finish is tried again
    finish_at: float | None = None  # when finish is tried again, by the driver's monotonic clock
    search: Search | None = None
    moved: float = field(default_factory=time.monotonic)  # when it was last submitted, read, or generated a part
    began: float | None = None  # when its worker had nothing else to generate any more
    has_input: bool = False
    done: int = 0  # parts generated
    superseded: bool = False  # its shard has a commit; it stays because its worker is at it

    @property
    def shard(self) -> str:
        """The shard's id."""
        return self.entry.shard.id

    @property
    def is_generated(self) -> bool:
        """Whether all its parts went through the model, at the last look."""
        return self.done == len(self.parts)

    @property
    def awaited(self) -> Any:
        """The reference that ends it, or its next step; None while it only waits for a time."""
        if self.search is not None:
            return self.search.reference
        if self.finish_at is not None:
            return None
        if self.receipt is not None:
            return self.receipt
        return self.summaries[-1] if self.summaries else self.read

    def look(self) -> bool:
        """Whether something was read or generated since the last look."""
        has_input, done = self.has_input or is_done(self.read), count_done(self.summaries)
        has_moved = has_input > self.has_input or done > self.done
        self.has_input, self.done = has_input, done
        if has_moved:
            self.moved = time.monotonic()
        return has_moved


@dataclass(eq=False)
class Queue:
    """The chains of one worker, in the order in which it generates them."""

    attempts: list[Attempt] = field(default_factory=list)
    moved: float = 0.0  # when it last got work or finished a part, by the driver's monotonic clock

    def mark_begun(self) -> bool:
        """Start the clock of each attempt whose turn has come; whether the worker has nothing to generate any more."""
        for attempt in self.attempts:
            if attempt.began is None:
                attempt.began = time.monotonic()
            if not attempt.is_generated:
                return False
        return True


@dataclass(order=True)
class Waiting:
    """A shard without a worker; `due` lies in the future after a fault."""

    due: float
    order: int
    entry: PlannedShard = field(compare=False)


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


def has_results(attempt: Attempt) -> bool:
    """Whether an attempt needs its worker no more: all is generated, and what is left is to finish it."""
    if attempt.receipt is None and attempt.finish_at is None:
        return False
    return all(is_done(summary) and failure_of(summary) is None for summary in attempt.summaries)


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
        attempt.look()
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
