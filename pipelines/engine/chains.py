"""The chain of Ray tasks that makes a shard (read, generate, finish).

A chain is submitted without waiting, and the driver keeps only references. Ray retries nothing: a retry by Ray would
run `finish` again with the same commit token. The driver retries the shard.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray.exceptions import RayError

from jointdit.errors import JointDiTError
from pipelines.engine.attempts import Attempt, Phase, Queue, Search
from pipelines.engine.bytes_in_flight import BytesInFlight
from pipelines.engine.deadline import deadline
from pipelines.engine.executor import Executor, Task
from pipelines.engine.faults import Stage
from pipelines.engine.isolation import Bisection
from pipelines.engine.workers import Worker
from pipelines.ledger.entries import PlannedShard
from pipelines.records import Sample, SampleResult
from pipelines.stages.context import RunContext
from pipelines.stages.finish import Receipt, finish_shard, try_finish
from pipelines.stages.generate import PartSummary
from pipelines.stages.read import Isolation, ShardRows, read_shard, try_rows


class SubmittedRead(NamedTuple):
    """A read task in flight: what it was submitted with, its references, and the bytes that it is counted with."""

    isolation: Isolation
    references: list[Any]  # summary, sample ids, rows, then each part
    bytes: int


class Chains:
    """Submits the steps of attempts."""

    def __init__(
        self, executor: Executor, context: RunContext, context_ref: Any, task_cpus: float, bytes_: BytesInFlight
    ) -> None:
        self.executor, self.context, self.context_ref, self.bytes = executor, context, context_ref, bytes_
        self.run = secrets.token_hex(4)  # first characters of the token of each commit of these chains
        labels = tuple(context.spec.resources.task_labels.items())
        # Few different names: Ray counts and exports the tasks of each name for as long as the driver lives.
        self._read = Task(_read, task_cpus, labels, "read")
        self._finish = Task(_finish, task_cpus, labels, "finish")
        self._try_read = Task(_try_read, task_cpus, labels)
        self._try_finish = Task(_try_finish, task_cpus, labels)
        self._ahead: dict[str, SubmittedRead] = {}  # by shard

    def read_ahead(self, entries: Iterable[tuple[PlannedShard, Isolation]]) -> None:
        """Submit the reads of shards that have no worker yet, as many as there is room for, and release all others."""
        before, self._ahead = self._ahead, {}
        for entry, isolation in entries:
            known = before.get(entry.shard.id)
            if known is not None and known.isolation == isolation:
                self._ahead[entry.shard.id] = before.pop(entry.shard.id)
            elif self.bytes.has_room(entry):
                self._ahead[entry.shard.id] = self._submit_read(entry, isolation)
            else:
                break  # this shard comes first, so the reads of later ones are released
        for released in before.values():
            self.bytes.give_back(released.bytes)

    def is_read_ahead(self, entry: PlannedShard) -> bool:
        """Whether the read of a shard was submitted before it has a worker, so that its bytes are counted."""
        return entry.shard.id in self._ahead

    def start(self, worker: Worker, entry: PlannedShard, isolation: Isolation) -> Attempt:
        """Submit a whole chain; of a shard with suspects, only the parts before them."""
        read_before = self._ahead.pop(entry.shard.id, None)
        if read_before is None or read_before.isolation != isolation:
            if read_before is not None:
                self.bytes.give_back(read_before.bytes)
            read_before = self._submit_read(entry, isolation)
        summary, ids, rows, *parts = read_before.references
        suspects = isolation.suspected(entry.samples)
        read = self.executor.watch(summary, None, wakes=suspects > 0)
        attempt = Attempt(entry, isolation, read, ids, rows, parts, self.executor.now(), read_before.bytes)
        read.owner = attempt
        for _ in range(len(parts) - suspects):
            self._generate_next(worker, attempt, wakes=suspects > 0)
        if len(attempt.outputs) == len(parts):
            self.finish(attempt, isolation)
        return attempt

    def submit_next(self, worker: Worker, attempt: Attempt, isolation: Isolation) -> None:
        """Submit the next part, or finish after the last one."""
        if len(attempt.outputs) < len(attempt.parts):
            self._generate_next(worker, attempt, wakes=True)
        else:
            self.finish(attempt, isolation)

    def finish(self, attempt: Attempt, isolation: Isolation) -> None:
        """Submit finish; again with the same results if it failed for a reason of its own."""
        arguments = (self.context_ref, attempt.entry, isolation.unfinishable, self.run, attempt.rows, *attempt.outputs)
        (reference,) = self.executor.submit(self._finish, 1, *arguments)
        attempt.submit(self.executor.watch(reference, attempt), self.executor.now())

    def search(self, attempt: Attempt, stage: Stage) -> None:
        """Begin to search for the rows of a shard that kill its reader, or the samples that kill its finish."""
        if stage == "read":
            ranges = [(number, span.start, span.stop) for number, span in enumerate(attempt.entry.shard.spans)]
            attempt.begin_search(Search(stage, Bisection(ranges)))
        else:
            samples = [sample for part in self.sample_ids(attempt) for sample in part]
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
            (reference,) = self.executor.submit(self._try_read, 1, self.context_ref, attempt.entry, number, start, stop)
        else:
            samples = frozenset(search.samples[start:stop])
            arguments = (self.context_ref, attempt.entry, samples, attempt.rows, *attempt.outputs)
            (reference,) = self.executor.submit(self._try_finish, 1, *arguments)
        attempt.add_try(self.executor.watch(reference, attempt), self.executor.now())

    def sample_ids(self, attempt: Attempt) -> list[list[str]]:
        """Fetch the sample ids of each part of an attempt that has been read."""
        ids: list[list[str]] = self.executor.get(attempt.ids)
        return ids

    def current_call(self, attempts: Sequence[Attempt]) -> CurrentCall | None:
        """The first call without a result whose input has been read; None if the worker waits for input.

        Calls run in the order of their submission, so nothing is generated behind a chain that is still being read.
        """
        for attempt in attempts:
            if not attempt.read.is_done:
                return None
            open_ = [number for number, summary in enumerate(attempt.summaries) if not summary.has_succeeded]
            if attempt.read.error is not None or not open_:
                continue
            try:
                ids = self.sample_ids(attempt)
            except (RayError, JointDiTError):
                return None  # its input is lost with the node, so the worker did not have it
            for number in open_:
                if ids[number]:
                    return CurrentCall(attempt, ids[number])
        return None

    def take_unstarted(self, queue: Queue) -> list[Attempt]:
        """Return the attempts of a worker that it has not started, which are to be removed from its queue.

        Their finish is cancelled. Their calls are not: an actor waits forever for a call that was cancelled before
        another one (Ray 2.60). So the worker may run them until it is ended, a second later.
        """
        taken = []
        call = self.current_call(queue.attempts)
        for attempt in queue.attempts:
            attempt.note_progress(self.executor.now())
            is_started = attempt.is_generated or (call is not None and attempt is call.attempt)
            if not is_started and not attempt.is_superseded:
                taken.append(attempt)
                if attempt.phase is Phase.SUBMITTED and attempt.awaited is not None:
                    self.executor.cancel(attempt.awaited)
        return taken

    def _submit_read(self, entry: PlannedShard, isolation: Isolation) -> SubmittedRead:
        count = isolation.parts(entry.samples, self.context.spec.model.batch_size)
        references = self.executor.submit(self._read, count + 3, self.context_ref, entry, isolation)
        return SubmittedRead(isolation, references, self.bytes.take(entry))

    def _generate_next(self, worker: Worker, attempt: Attempt, wakes: bool) -> None:
        part = attempt.parts[len(attempt.outputs)]
        output, summary = self.executor.call(worker.actor, "generate", 2, part)
        attempt.add_part(output, self.executor.watch(summary, attempt, wakes))


def seconds_of(attempt: Attempt, receipt: Receipt) -> dict[str, float]:
    """Seconds that each step of a finished chain took in its own process; "finish" includes "write"."""
    calls: Counter[str] = Counter()
    for summary in summaries_of(attempt):
        calls.update({"generate": summary.seconds, **summary.steps})
    read: ReadSummary | None = attempt.read.value
    finish = {"finish": receipt.seconds + receipt.commit_seconds}
    write = receipt.write_seconds + receipt.commit_seconds
    return {"read": read.seconds if read is not None else 0.0, **calls, **finish, "write": write}


def summaries_of(attempt: Attempt) -> list[PartSummary]:
    """The summaries of the generated parts of an attempt."""
    return [summary.value for summary in attempt.summaries if summary.has_succeeded]


def has_generated(attempts: Sequence[Attempt]) -> bool:
    """Whether any sample of these attempts was generated."""
    return any(summary.samples for attempt in attempts for summary in summaries_of(attempt))


class CurrentCall(NamedTuple):
    """The call that a worker is busy with."""

    attempt: Attempt
    samples: list[str]  # ids


@dataclass(frozen=True)
class ReadSummary:
    """The small part of a read task's result, so that the driver learns of a fault without fetching pixels."""

    seconds: float
    bytes: int  # of the rows and parts


def _read(context: RunContext, entry: PlannedShard, isolation: Isolation) -> tuple[Any, ...]:
    """The read task. Returns its summary, the sample ids, the rows for finish, and each part as one object."""
    started = time.monotonic()
    with deadline(context.spec.resources.stall_seconds, f"reading shard {entry.shard.id}"):
        rows, parts = read_shard(context, entry, isolation)
    ids = [[sample.id for sample in part] for part in parts]
    held = sum(source.bytes for source in rows.rows if source.again is None)
    held += sum(_array_bytes(sample) for part in parts for sample in part)
    return (ReadSummary(time.monotonic() - started, held), ids, rows, *parts)


def _array_bytes(sample: Sample) -> int:
    return sum(array.nbytes for array in (sample.rgb, sample.disparity) if array is not None)


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
