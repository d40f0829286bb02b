"""Dispatch: shards to their commits on a pool of workers, whatever dies. All it knows is in the ledger.

Shards on their way are held by flow.py; oversight.py looks at the cluster, and at what hangs or is late. Faults are
classified in faults.py and dealt with in these three:

    a fault of the infrastructure   the shard again after a backoff, until retries.infrastructure is spent
    a dead worker, reader, finish   the shard it was at is blamed (isolation.py), its neighbours simply go again
    a node that goes                its workers are replaced elsewhere; what was not begun there moves, nobody is blamed
    a straggler                     started again on an idle worker, the first commit wins
    a limit (limits.py)             workers finish the shard they are at, nothing else is begun
    anything else                   stops the run; what is committed stays

A shard that was generated keeps its results while finish is tried again: no GPU works twice for a store's hiccup.
"""

from __future__ import annotations

import heapq
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from jointdit.errors import JointDiTError, PermanentError
from pipelines.engine.attempts import Attempt, Queue, Waiting
from pipelines.engine.chains import seconds_of, summaries_of
from pipelines.engine.faults import GET_SECONDS, classify, first_failure, is_done, is_node_loss
from pipelines.engine.flow import Flow
from pipelines.engine.limits import Limits
from pipelines.engine.oversight import ABANDONED_AFTER, Oversight
from pipelines.engine.progress import Progress
from pipelines.engine.searches import SearchOutcome, step_search
from pipelines.engine.workers import Worker, WorkerPool
from pipelines.ledger.counting import InputVersions
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.plan_tables import versions_of
from pipelines.stages.context import RunContext
from pipelines.stages.finish import Receipt
from pipelines.store.errors import TransientError
from pipelines.store.retries import patiently

POLL_SECONDS = 1.0
MOST_AHEAD = 64  # shards that are read while workers load their model
logger = logging.getLogger(__name__)
shard_log = logging.getLogger("pipelines.shards")  # a line a shard, for JSON logs


class Dispatcher:
    """Brings shards to their commits on a pool of workers."""

    def __init__(
        self,
        context: RunContext,
        context_ref: Any,
        ledger: Ledger,
        pool: WorkerPool,
        progress: Progress,
        limits: Limits,
    ) -> None:
        self.context, self.ledger = context, ledger
        self.flow = flow = Flow(context, context_ref, ledger, pool, progress)
        self.oversight = Oversight(flow, limits)
        self.pool, self.progress, self.resources = pool, progress, flow.resources
        self.chains, self.crashes, self.budgets = flow.chains, flow.crashes, flow.budgets
        self.quarantined = self.planned = 0  # samples of this run
        self.excused = 0  # of these, samples that failed before, or whose file has changed since: no news if they fail

    def run(self, entries: Iterable[PlannedShard]) -> None:
        """Return when every shard has its commit; at a limit, when those that workers are at have theirs.

        Raises:
            PermanentError: a permanent fault, a spent budget, or too many quarantined. What is committed stays.
        """
        tables = patiently(self.ledger.plan_tables, self.context.spec.retries.infrastructure)
        versions = InputVersions(versions_of(tables))
        for order, entry in enumerate(entries):
            heapq.heappush(self.flow.waiting, Waiting(0.0, order, entry))
            self.planned += entry.samples
            self.excused += entry.samples if entry.retry else entry.samples - versions.current_samples(entry)
            self.progress.plan(entry.samples)
        self.oversight.staff()
        while self.flow.waiting or any(self.flow.live()):
            self._welcome()
            self._submit()
            self._read_ahead()
            self._collect()
            self.oversight.run_checks()
        self.oversight.tell()

    # --- submit ------------------------------------------------------------------------------------------------------

    def _welcome(self) -> None:
        for worker in [worker for worker in self.flow.queues if not worker.is_up]:
            error = self.pool.check_start(worker)
            if error is not None:
                self.flow.queues.pop(worker)
                self.pool.take_out(worker, error, is_its_own=not is_node_loss(error))
                self.flow.has_lost = True
            elif worker.is_up:
                self._drop_committed()  # it may have waited for another driver's workers to go

    def _drop_committed(self) -> None:
        """Take shards that another driver committed off the list."""
        try:
            committed = self.ledger.committed()
        except TransientError as error:
            logger.warning("the commits could not be listed, which only costs work: %s", error)
            return
        done = [waiting for waiting in self.flow.waiting if waiting.entry.shard.id in committed]
        if done:
            self.flow.waiting = [waiting for waiting in self.flow.waiting if waiting.entry.shard.id not in committed]
            heapq.heapify(self.flow.waiting)
            self.progress.plan(-sum(waiting.entry.samples for waiting in done))

    def _submit(self) -> None:
        """Give each worker its share of what is left, at most `shards_in_flight` at once."""
        workers = {worker: queue for worker, queue in self.flow.queues.items() if not worker.is_leaving}
        left = len(self.flow.waiting) + sum(1 for _ in self.flow.live())
        room = min(self.resources.shards_in_flight, math.ceil(left / max(1, len(workers))))
        for worker, queue in workers.items():
            while worker.is_up and len(queue.attempts) < room and self.flow.is_due():
                entry = self.flow.waiting[0].entry
                isolation = self.crashes.isolation(entry)
                if queue.attempts and (isolation.suspects or queue.attempts[0].isolation.suspects):
                    break  # a suspect may take its worker down: not with others in the queue
                heapq.heappop(self.flow.waiting)
                self.flow.start(worker, entry)

    def _read_ahead(self) -> None:
        """While workers load their model, read a shard for each: they begin with what is there already."""
        loading = sum(not worker.is_up and worker.node is not None for worker in self.flow.queues)
        waiting = self.flow.waiting
        first = [heapq.heappop(waiting) for _ in range(min(loading, MOST_AHEAD, len(waiting)))]
        for each in first:
            heapq.heappush(waiting, each)
        now = time.monotonic()
        due = [each.entry for each in first if each.due <= now]
        self.chains.read_ahead([(entry, self.crashes.isolation(entry)) for entry in due])

    # --- collect -----------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Wait for something to happen, and take every chain on to its next step."""
        references = [worker.ready for worker in self.flow.queues if not worker.is_up]
        references += [attempt.awaited for _, _, attempt in self.flow.attempts() if attempt.awaited is not None]
        if references:
            ray.wait(references, timeout=POLL_SECONDS, fetch_local=False)
        else:
            due = self.flow.waiting[0].due if self.flow.waiting else math.inf
            time.sleep(max(0.01, min(POLL_SECONDS, due - time.monotonic())))  # all back off
        for worker, queue, attempt in self.flow.attempts():
            if attempt.search is not None:
                self._search(queue, attempt)
            elif attempt.finish_at is not None:
                if time.monotonic() >= attempt.finish_at:
                    self.chains.finish(attempt, self.crashes.isolation(attempt.entry))
            elif attempt.receipt is not None:
                if is_done(attempt.receipt):
                    self._end(worker, queue, attempt)
            elif worker is not None:
                self._advance(worker, queue, attempt)

    def _advance(self, worker: Worker, queue: Queue, attempt: Attempt) -> None:
        """Submit the next suspect once the one before it is safe: a death right after a result can lose the result."""
        if not is_done(attempt.awaited):
            return
        try:
            ray.get(attempt.awaited, timeout=GET_SECONDS)
        except (RayError, JointDiTError) as error:
            self._fail(worker, queue, attempt, error)
            return
        if len(attempt.outputs) < len(attempt.parts):
            self.chains.generate_next(worker, attempt)
        else:
            self.chains.finish(attempt, self.crashes.isolation(attempt.entry))

    def _end(self, worker: Worker | None, queue: Queue, attempt: Attempt) -> None:
        try:
            receipt: Receipt = ray.get(attempt.receipt, timeout=GET_SECONDS)
        except (RayError, JointDiTError) as error:
            self._fail(worker, queue, attempt, error)
            return
        self.flow.take_back(queue, attempt)
        if worker is not None:
            for summary in summaries_of(attempt):
                self.pool.was_busy(summary.seconds)
                self.progress.computed_in(summary.dtype, self.context.spec.model.dtype)
                self.pool.generated(worker, summary.batch_size, self.context.spec.model.batch_size)
        if attempt.superseded:
            return  # the slower of two: the other one was counted
        self.flow.ended.add(attempt.shard)
        for twin in self.flow.live(attempt.shard):
            twin.superseded = True
        if receipt.token.startswith(self.chains.run):  # whichever attempt of ours it was
            self.oversight.pace.committed(attempt)
            self._count(attempt, receipt, seconds_of(attempt, receipt) if worker is not None else {})
        else:
            self.progress.plan(-attempt.entry.samples)
            self._drop_committed()

    def _count(self, attempt: Attempt, receipt: Receipt, seconds: Mapping[str, float]) -> None:
        self.progress.committed(receipt, attempt.entry.shard.rows, seconds)
        shard_log.info(
            "shard %s is committed",
            receipt.shard,
            extra={"shard": receipt.shard, "attempt": receipt.token, "outcomes": receipt.counts, "seconds": seconds},
        )
        self.quarantined += receipt.counts["quarantined"]
        fraction = self.context.spec.quality.max_quarantined_fraction
        if self.quarantined > self.excused + fraction * (self.planned - self.excused):
            raise PermanentError(
                f"{self.quarantined} of the {self.planned} samples of this run are quarantined, more than "
                f"quality.max_quarantined_fraction {fraction:g} allows, {receipt.example.rstrip('.')} for one: mend "
                "the input or raise the fraction; what is committed stays."
            )

    # --- faults ------------------------------------------------------------------------------------------------------

    def _fail(self, worker: Worker | None, queue: Queue, attempt: Attempt, error: BaseException) -> None:
        stage, error = first_failure(attempt.read, attempt.summaries, error)
        try:
            fault = classify(stage, error, attempt.shard)
        except PermanentError:
            if not attempt.superseded:
                raise
            self.flow.take_back(queue, attempt)
            return
        if fault.worker_is_gone and worker is not None:
            self.flow.lose(worker, fault)
        elif attempt.superseded:
            self.flow.take_back(queue, attempt)
        elif self.budgets.is_blamed(attempt.entry, fault):
            self.budgets.blame(attempt.entry, fault)
            if self.crashes.needs_bisection(attempt.entry, stage):
                self.chains.search(attempt, stage)
            elif stage == "finish":
                self.chains.finish(attempt, self.crashes.isolation(attempt.entry))
            else:
                self.flow.take_back(queue, attempt)
                self.flow.again(attempt.entry)
        else:
            due = time.monotonic() + self.budgets.charge(attempt.entry, fault)
            if stage == "finish" and fault.kind != "object":
                attempt.receipt, attempt.finish_at = None, due
            else:
                self.flow.take_back(queue, attempt)
                self.flow.again(attempt.entry, due)

    def _search(self, queue: Queue, attempt: Attempt) -> None:
        """Take the search for the rows that kill a reader or a finish one step on."""
        patience = ABANDONED_AFTER * self.resources.stall_seconds
        outcome, fault = step_search(self.chains, self.crashes, attempt, patience)
        if fault is not None:
            due = time.monotonic() + self.budgets.charge(attempt.entry, fault)
            if outcome is SearchOutcome.GOES_ON and attempt.search is not None:
                attempt.search.try_at = due
        if outcome is SearchOutcome.SHARD_AGAIN:
            self.flow.take_back(queue, attempt)
            self.flow.again(attempt.entry)
        elif outcome is SearchOutcome.FINISH_AGAIN:
            self.chains.finish(attempt, self.crashes.isolation(attempt.entry))
