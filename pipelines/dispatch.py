"""Dispatch: chains of tasks in flight, and what is done about their faults. All it knows is in the ledger.

    read (task) -> parts -> worker.generate, a call a part (actor) -> finish (task): filter, encode, write, commit

A chain is submitted without waiting and only its last reference is waited for. Ray itself retries nothing: it would
rerun `finish` with the same attempt. Shards are retried here:

    a transient fault               with backoff, until retries.infrastructure is spent
    a dead worker, reader, finish   the shard it was at is blamed (isolation.py), its neighbours simply go again
    anything else                   stops the run; what is committed stays
"""

from __future__ import annotations

import heapq
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from jointdit.errors import JointDiTError, PermanentError, TransientError
from pipelines.context import RunContext
from pipelines.deadline import deadline
from pipelines.finish import Receipt, finish_shard
from pipelines.isolation import Crashes, bisect_rows
from pipelines.ledger import Ledger, PlannedShard
from pipelines.progress import Progress
from pipelines.read import Isolation, ShardRows, read_shard, try_rows
from pipelines.records import SampleResult
from pipelines.worker import DeviceFault
from pipelines.workers import Worker, WorkerPool, count_done, failure_of, in_one_line, is_done, unwrap

POLL_SECONDS = 1.0
FIRST_BACKOFF_SECONDS, MOST_BACKOFF_SECONDS = 1.0, 60.0
SETTLE_SECONDS = 10.0  # for the other references of a chain to learn of its fault
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Attempt:
    """One chain in flight."""

    entry: PlannedShard
    isolation: Isolation
    read: Any  # a small summary, so that the driver never fetches pixels to learn of a fault
    rows: Any
    parts: list[Any]
    outputs: list[Any] = field(default_factory=list)
    summaries: list[Any] = field(default_factory=list)
    receipt: Any = None  # of finish; None while suspects are submitted one by one
    has_input: bool = False
    done: int = 0  # parts generated

    @property
    def awaited(self) -> Any:
        """The reference that ends it, or its next step."""
        if self.receipt is not None:
            return self.receipt
        return self.summaries[-1] if self.summaries else self.read


@dataclass(eq=False)
class Queue:
    """The chains of one worker, in the order in which it generates them."""

    attempts: list[Attempt] = field(default_factory=list)
    moved: float = 0.0  # when it last got work or finished a part, by the driver's monotonic clock


@dataclass(order=True)
class Waiting:
    """A shard without a worker; `due` lies in the future after a fault."""

    due: float
    order: int
    entry: PlannedShard = field(compare=False)


class Dispatcher:
    """Brings shards to their commits on a pool of workers."""

    def __init__(
        self, context: RunContext, context_ref: Any, ledger: Ledger, pool: WorkerPool, progress: Progress
    ) -> None:
        self.context, self.context_ref, self.ledger = context, context_ref, ledger
        self.pool, self.progress = pool, progress
        self.crashes = Crashes(ledger, context.spec.retries.crash)
        self.queues = {worker: Queue() for worker in pool.workers}
        self.waiting: list[Waiting] = []
        self.faults: Counter[str] = Counter()  # transient, a shard
        self.quarantined = self.planned = 0  # samples of this run
        self.watched = 0.0
        options = {"num_cpus": pool.plan.task_cpus, "max_retries": 0}
        self.read_task = ray.remote(**options)(_read)
        self.try_task = ray.remote(**options)(_try)
        self.finish_task = ray.remote(**options)(_finish)

    def run(self, entries: Iterable[PlannedShard]) -> None:
        """Return when every shard has its commit.

        Raises:
            PermanentError: a permanent fault, a spent budget, or too many quarantined. What is committed stays.
        """
        for order, entry in enumerate(entries):
            heapq.heappush(self.waiting, Waiting(0.0, order, entry))
            self.planned += entry.samples
            self.progress.plan(entry.samples)
        while self.waiting or any(queue.attempts for queue in self.queues.values()):
            self._welcome()
            self._submit()
            self._collect()
            self._watch()

    # --- submit ------------------------------------------------------------------------------------------------------

    def _welcome(self) -> None:
        for worker in [worker for worker in self.queues if not worker.is_up]:
            error = self.pool.check_start(worker)
            if error is not None:
                self._lose(worker, error)
            elif worker.is_up:
                self._drop_committed()  # it may have waited for another driver's workers to go

    def _drop_committed(self) -> None:
        """Take shards that another driver committed off the list."""
        committed = self.ledger.committed()
        done = [waiting for waiting in self.waiting if waiting.entry.shard.id in committed]
        if done:
            self.waiting = [waiting for waiting in self.waiting if waiting.entry.shard.id not in committed]
            heapq.heapify(self.waiting)
            self.progress.plan(-sum(waiting.entry.samples for waiting in done))

    def _submit(self) -> None:
        """Give each worker its share of what is left, at most `shards_in_flight` at once."""
        left = len(self.waiting) + sum(len(queue.attempts) for queue in self.queues.values())
        room = min(self.context.spec.resources.shards_in_flight, math.ceil(left / len(self.queues)))
        for worker, queue in self.queues.items():
            while worker.is_up and len(queue.attempts) < room and self._is_due():
                entry = self.waiting[0].entry
                isolation = self.crashes.isolation(entry)
                if queue.attempts and (isolation.suspects or queue.attempts[0].isolation.suspects):
                    break  # a suspect may take its worker down: not with others in the queue
                heapq.heappop(self.waiting)
                if not queue.attempts:
                    queue.moved = time.monotonic()
                queue.attempts.append(self._chain(worker, entry, isolation))

    def _is_due(self) -> bool:
        return bool(self.waiting) and self.waiting[0].due <= time.monotonic()

    def _chain(self, worker: Worker, entry: PlannedShard, isolation: Isolation) -> Attempt:
        count = isolation.parts(entry.samples, self.context.spec.model.batch_size)
        read, rows, *parts = self.read_task.options(num_returns=count + 2).remote(self.context_ref, entry, isolation)
        attempt = Attempt(entry, isolation, read, rows, parts)
        for _ in range(count - isolation.suspected(entry.samples)):
            self._generate_next(worker, attempt)
        if len(attempt.outputs) == count:
            self._finish(attempt)
        return attempt

    def _generate_next(self, worker: Worker, attempt: Attempt) -> None:
        part = attempt.parts[len(attempt.outputs)]
        output, summary = worker.actor.generate.options(num_returns=2).remote(part)
        attempt.outputs.append(output)
        attempt.summaries.append(summary)

    def _finish(self, attempt: Attempt) -> None:
        attempt.receipt = self.finish_task.remote(self.context_ref, attempt.entry, attempt.rows, *attempt.outputs)

    def _advance(self, worker: Worker, queue: Queue, attempt: Attempt) -> None:
        """Submit the next suspect once the one before it is safe: a death right after a result can lose the result."""
        if not is_done(attempt.awaited):
            return
        error = failure_of(attempt.awaited)
        if error is not None:
            self._fail(worker, queue, attempt, error)
        elif len(attempt.outputs) < len(attempt.parts):
            self._generate_next(worker, attempt)
        else:
            self._finish(attempt)

    # --- collect -----------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Wait for something to happen, and deal with the chains that ended."""
        starting = [worker.ready for worker in self.queues if not worker.is_up]
        awaited = [attempt.awaited for queue in self.queues.values() for attempt in queue.attempts]
        if starting or awaited:
            ray.wait(starting + awaited, timeout=POLL_SECONDS, fetch_local=False)
        elif self.waiting:
            time.sleep(max(0.0, min(POLL_SECONDS, self.waiting[0].due - time.monotonic())))  # all back off
        for worker, queue in list(self.queues.items()):
            for attempt in list(queue.attempts):
                if attempt not in queue.attempts:
                    continue  # it went with its worker a moment ago
                if attempt.receipt is None:
                    self._advance(worker, queue, attempt)
                elif is_done(attempt.receipt):
                    self._end(worker, queue, attempt)

    def _end(self, worker: Worker, queue: Queue, attempt: Attempt) -> None:
        try:
            receipt: Receipt = ray.get(attempt.receipt, timeout=60)
        except (RayError, JointDiTError) as error:
            self._fail(worker, queue, attempt, error)
            return
        queue.attempts.remove(attempt)
        queue.moved = time.monotonic()
        if not receipt.won:
            self.progress.plan(-attempt.entry.samples)
            self._drop_committed()
            return
        self.progress.committed(receipt)
        self.quarantined += receipt.counts["quarantined"]
        fraction = self.context.spec.quality.max_quarantined_fraction
        if self.quarantined > fraction * self.planned:
            raise PermanentError(
                f"{self.quarantined} of the {self.planned} samples of this run are quarantined, more than "
                f"quality.max_quarantined_fraction {fraction:g} allows, {receipt.example.rstrip('.')} for one: mend "
                "the input or raise the fraction; what is committed stays."
            )

    def _fail(self, worker: Worker, queue: Queue, attempt: Attempt, error: BaseException) -> None:
        stage, error = _diagnose(attempt, error)
        cause = unwrap(error)
        if isinstance(cause, PermanentError):
            raise cause
        if isinstance(cause, RayActorError | DeviceFault):
            self._lose(worker, cause)
        elif isinstance(cause, WorkerCrashedError):
            self._take_back(queue, attempt)
            self._blame(attempt.entry, stage, f"the {stage} process died")
        elif isinstance(cause, TransientError) or (isinstance(cause, RayError) and not isinstance(cause, RayTaskError)):
            self._take_back(queue, attempt)
            self._back_off(attempt.entry, cause)
        else:
            raise PermanentError(
                f"shard {attempt.entry.shard.id} failed in {stage} in a way that is no known fault, "
                f"{type(cause).__name__}: {in_one_line(cause)}; what is committed stays."
            ) from error

    def _lose(self, worker: Worker, error: BaseException) -> None:
        """A worker is dead: the shard it was at is blamed, all its shards go back, another takes its place."""
        queue = self.queues.pop(worker)
        attempts = list(queue.attempts)
        queue.attempts.clear()
        blamed = None if _is_innocent(error) else _at_work(attempts)
        for attempt in attempts:
            if blamed is not None and attempt is blamed[0]:
                self._blame(attempt.entry, "generate", in_one_line(error), blamed[1])
            else:
                heapq.heappush(self.waiting, Waiting(0.0, -1, attempt.entry))
        self.queues[self.pool.replace(worker, error)] = Queue()

    def _blame(self, entry: PlannedShard, stage: str, error: str, samples: list[str] | None = None) -> None:
        count = self.crashes.record(entry, stage, error, samples or [])
        logger.warning("shard %s took a process down (%s, %d so far): %s", entry.shard.id, stage, count, error)
        if self.crashes.needs_bisection(entry):
            self.crashes.record_poison_rows(entry, bisect_rows(entry, lambda *part: self._kills(entry, *part)))
        heapq.heappush(self.waiting, Waiting(0.0, -1, entry))

    def _kills(self, entry: PlannedShard, span: int, start: int, stop: int) -> bool:
        """Whether reading rows [start, stop) of a span takes the process down."""
        reference = self.try_task.remote(self.context_ref, entry, span, start, stop)
        ray.wait([reference], timeout=3 * self.context.spec.resources.stall_seconds)
        error = failure_of(reference)
        return error is not None and isinstance(unwrap(error), WorkerCrashedError | GetTimeoutError)

    def _back_off(self, entry: PlannedShard, error: BaseException) -> None:
        self.faults[entry.shard.id] += 1
        count, budget = self.faults[entry.shard.id], self.context.spec.retries.infrastructure
        if count > budget:
            raise PermanentError(
                f"shard {entry.shard.id} met {count} infrastructure faults, more than retries.infrastructure {budget}: "
                f"the last was {type(error).__name__}, {in_one_line(error)}; what is committed stays."
            ) from error
        delay = min(MOST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (count - 1)) * random.uniform(0.5, 1.5)
        logger.warning(
            "shard %s is tried again in %.1f s (%d of %d): %s", entry.shard.id, delay, count, budget, in_one_line(error)
        )
        heapq.heappush(self.waiting, Waiting(time.monotonic() + delay, -1, entry))

    def _take_back(self, queue: Queue, attempt: Attempt) -> None:
        queue.attempts.remove(attempt)
        queue.moved = time.monotonic()

    # --- watch -------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Count what was generated; a worker that finishes nothing for too long is taken for dead."""
        if time.monotonic() - self.watched < POLL_SECONDS:
            return
        self.watched, in_flight = time.monotonic(), 0.0
        for worker, queue in list(self.queues.items()):
            for attempt in queue.attempts:
                has_input, done = attempt.has_input or is_done(attempt.read), count_done(attempt.summaries)
                if has_input > attempt.has_input or done > attempt.done:
                    attempt.has_input, attempt.done, queue.moved = has_input, done, time.monotonic()
                in_flight += attempt.entry.samples * attempt.done / len(attempt.parts)
            if queue.attempts and time.monotonic() - queue.moved > self.context.spec.resources.stall_seconds:
                self._unstick(worker, queue)
        self.progress.show(in_flight)

    def _unstick(self, worker: Worker, queue: Queue) -> None:
        """A worker that had its input all the while hangs; read and finish tasks see to their own deadlines."""
        generating = next((attempt for attempt in queue.attempts if attempt.done < len(attempt.parts)), None)
        if generating is not None and generating.has_input:
            limit = self.context.spec.resources.stall_seconds
            self._lose(worker, TimeoutError(f"it finished no batch within {limit:g} seconds"))
        else:
            queue.moved = time.monotonic()


def _read(context: RunContext, entry: PlannedShard, isolation: Isolation) -> tuple[Any, ...]:
    """The read task: its summary, the rows for finish, and each part as an object of its own, fetched by its worker."""
    with deadline(context.spec.resources.stall_seconds, f"reading shard {entry.shard.id}"):
        rows, parts = read_shard(context, entry, isolation)
    return ([[sample.id for sample in part] for part in parts], rows, *parts)


def _try(context: RunContext, entry: PlannedShard, span: int, start: int, stop: int) -> None:
    with deadline(context.spec.resources.stall_seconds, f"reading rows {start} to {stop}"):
        try_rows(context, entry, span, start, stop)


def _finish(context: RunContext, entry: PlannedShard, rows: ShardRows, *parts: Sequence[SampleResult]) -> Receipt:
    with deadline(context.spec.resources.stall_seconds, f"finishing shard {entry.shard.id}"):
        return finish_shard(context, entry, rows, *parts)


def _diagnose(attempt: Attempt, error: BaseException) -> tuple[str, BaseException]:
    """The stage that failed first, and its error: what depends on it fails with it."""
    for stage, references in (("read", [attempt.read]), ("generate", attempt.summaries)):
        if references:
            ray.wait(references, num_returns=len(references), timeout=SETTLE_SECONDS, fetch_local=False)
        for reference in references:
            failure = failure_of(reference) if is_done(reference) else None
            if failure is not None:
                return stage, failure
    return "finish", error


def _at_work(attempts: list[Attempt]) -> tuple[Attempt, list[str]] | None:
    """The attempt and sample ids a dead worker was at: the first call without a result whose input was there."""
    for attempt in attempts:
        if not is_done(attempt.read) or failure_of(attempt.read) is not None:
            return None
        for part, summary in zip(ray.get(attempt.read, timeout=60), attempt.summaries, strict=False):
            if not is_done(summary) or failure_of(summary) is not None:
                return (attempt, part) if part else None
    return None


def _is_innocent(error: BaseException) -> bool:
    """Whether a worker died of something no shard can be blamed for: its node went, or it cannot be reached."""
    if isinstance(error, ActorDiedError):
        return error.preempted or "its node has died" in error.error_msg
    return isinstance(error, ActorUnavailableError | DeviceFault)
