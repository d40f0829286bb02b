"""Bring shards to their commits on a pool of workers, whatever fails.

The only lasting state is in the ledger. flow.py holds the shards in flight, oversight.py watches the cluster and what
hangs or is late, and faults.py classifies faults. The reactions:

    fault of the infrastructure     retry the shard after a backoff, until retries.infrastructure is used up
    dead worker, reader or finish   blame the shard it was busy with (isolation.py), retry its neighbours
    node that leaves                replace its workers elsewhere, move the shards they have not started, blame nobody
    straggler                       start a second attempt on an idle worker; the first commit wins
    limit (limits.py)               workers finish the shard they are busy with, no other shard is started
    any other error                 stop the run; commits stay

A generated shard keeps its results while finish is retried, so a fault of the store costs no GPU time.
"""

from __future__ import annotations

import heapq
import logging
import math
import time
from collections.abc import Iterable, Mapping

import ray
from ray.exceptions import RayError

from jointdit.errors import JointDiTError, PermanentError
from pipelines.engine.attempts import Attempt, Phase, Queue, Waiting
from pipelines.engine.chains import seconds_of, summaries_of
from pipelines.engine.faults import GET_SECONDS, classify, first_failure, is_done, is_node_loss
from pipelines.engine.flow import Flow
from pipelines.engine.limits import Limits
from pipelines.engine.oversight import Oversight
from pipelines.engine.searches import step_search
from pipelines.ledger.counting import InputVersions
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.plan_tables import versions_of
from pipelines.stages.finish import Receipt
from pipelines.store.errors import TransientError
from pipelines.store.retries import patiently

POLL_SECONDS = 1.0
MOST_AHEAD = 64  # shards that are read while workers load their model
logger = logging.getLogger(__name__)
shard_log = logging.getLogger("pipelines.shards")  # one line per shard, for JSON logs


class Dispatcher:
    """Brings shards to their commits on a pool of workers."""

    def __init__(self, flow: Flow, limits: Limits) -> None:
        self.flow, self.oversight = flow, Oversight(flow, limits)
        self.quarantined = self.planned = 0  # samples of this run
        self.excused = 0  # planned samples that failed before or whose file has changed: expected failures

    def run(self, entries: Iterable[PlannedShard]) -> None:
        """Return when every shard has its commit; at a limit, when those that workers are busy with have theirs.

        Raises:
            PermanentError: a permanent fault, a spent budget, or too many quarantined samples. Commits stay.
        """
        retries = self.flow.context.spec.retries
        versions = InputVersions(versions_of(patiently(self.flow.ledger.plan_tables, retries.infrastructure)))
        for order, entry in enumerate(entries):
            heapq.heappush(self.flow.waiting, Waiting(0.0, order, entry))
            self.planned += entry.samples
            self.excused += entry.samples if entry.retry else entry.samples - versions.current_samples(entry)
            self.flow.progress.plan(entry.samples)
        self.oversight.staff()
        while self.flow.waiting or any(self.flow.live()):
            self._welcome()
            self._submit()
            self._read_ahead()
            self._collect()
            self.oversight.run_checks()
        self.oversight.export_metrics()

    # --- submit ------------------------------------------------------------------------------------------------------

    def _welcome(self) -> None:
        """Note which workers have started, and replace those that could not."""
        for worker in [worker for worker in self.flow.queues if not worker.is_up]:
            error = self.flow.pool.check_start(worker)
            if error is not None:
                self.flow.queues.pop(worker)
                self.flow.pool.take_out(worker, error, is_its_own=not is_node_loss(error))
                self.flow.has_lost = True
            elif worker.is_up:
                self._drop_committed()  # it may have waited until another driver's workers ended

    def _drop_committed(self) -> None:
        """Remove waiting shards that another driver has committed."""
        try:
            committed = self.flow.ledger.committed()
        except TransientError as error:
            logger.warning("the commits could not be listed, so committed shards may be made again: %s", error)
            return
        done = [waiting for waiting in self.flow.waiting if waiting.entry.shard.id in committed]
        if done:
            self.flow.waiting = [waiting for waiting in self.flow.waiting if waiting.entry.shard.id not in committed]
            heapq.heapify(self.flow.waiting)
            self.flow.progress.plan(-sum(waiting.entry.samples for waiting in done))

    def _submit(self) -> None:
        """Give each worker its share of the waiting shards, at most `shards_in_flight` at once."""
        workers = {worker: queue for worker, queue in self.flow.queues.items() if not worker.is_leaving}
        left = len(self.flow.waiting) + len(list(self.flow.live()))
        share = math.ceil(left / max(1, len(workers)))
        room = min(self.flow.context.spec.resources.shards_in_flight, share)
        for worker, queue in workers.items():
            while worker.is_up and len(queue.attempts) < room and self.flow.is_due():
                entry = self.flow.waiting[0].entry
                isolation = self.flow.crashes.isolation(entry)
                if queue.attempts and (isolation.suspects or queue.attempts[0].isolation.suspects):
                    break  # a suspect may kill its worker, so it shares the queue with no other shard
                heapq.heappop(self.flow.waiting)
                self.flow.start(worker, entry)

    def _read_ahead(self) -> None:
        """Read one shard per worker that is loading its model, so that its first input is ready."""
        loading = sum(not worker.is_up and worker.node is not None for worker in self.flow.queues)
        first = heapq.nsmallest(min(loading, MOST_AHEAD), self.flow.waiting)
        now = time.monotonic()
        due = [waiting.entry for waiting in first if waiting.due <= now]
        self.flow.chains.read_ahead([(entry, self.flow.crashes.isolation(entry)) for entry in due])

    # --- collect -----------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Wait until a reference is ready, then take every attempt that can go on to its next step."""
        references = [worker.ready for worker in self.flow.queues if not worker.is_up]
        references += [attempt.awaited for _, attempt in self.flow.attempts() if attempt.awaited is not None]
        if references:
            ray.wait(references, timeout=POLL_SECONDS, fetch_local=False)
        else:
            due = self.flow.waiting[0].due if self.flow.waiting else math.inf
            time.sleep(max(0.01, min(POLL_SECONDS, due - time.monotonic())))  # everything waits for a backoff
        for queue, attempt in self.flow.attempts():
            if attempt.phase is Phase.SEARCHING:
                step_search(self.flow, queue, attempt)
            elif attempt.awaited is not None:
                if is_done(attempt.awaited):
                    self._advance(queue, attempt)
            elif attempt.is_superseded:
                self.flow.remove(queue, attempt)
            elif time.monotonic() >= attempt.due:
                self.flow.finish(attempt)

    def _advance(self, queue: Queue, attempt: Attempt) -> None:
        """Take the result of an attempt's last reference and submit its next step, or end it."""
        try:
            result = ray.get(attempt.awaited, timeout=GET_SECONDS)
        except (RayError, JointDiTError) as error:
            self._fail(queue, attempt, error)
            return
        if attempt.phase is not Phase.STEPWISE:
            self._end(queue, attempt, result)
        elif queue.worker is not None:
            # One suspect at a time: a worker that dies right after a result can lose the result.
            self.flow.chains.submit_next(queue.worker, attempt, self.flow.crashes.isolation(attempt.entry))

    def _end(self, queue: Queue, attempt: Attempt, receipt: Receipt) -> None:
        """Remove an attempt whose chain has ended, and count its shard unless another attempt was first."""
        self.flow.remove(queue, attempt)
        if queue.worker is not None:
            model = self.flow.context.spec.model
            for summary in summaries_of(attempt):
                self.flow.pool.was_busy(summary.seconds)
                self.flow.progress.computed_in(summary.dtype, model.dtype)
                self.flow.pool.generated(queue.worker, summary.batch_size, model.batch_size)
        if attempt.is_superseded:
            return
        self.flow.committed.add(attempt.shard)
        for other in self.flow.live(attempt.shard):
            other.supersede()
        if receipt.token.startswith(self.flow.chains.run):  # the commit is by an attempt of this run
            self.oversight.pace.committed(attempt)
            self._count(attempt, receipt, seconds_of(attempt, receipt) if queue.worker is not None else {})
        else:
            self.flow.progress.plan(-attempt.entry.samples)
            self._drop_committed()

    def _count(self, attempt: Attempt, receipt: Receipt, seconds: Mapping[str, float]) -> None:
        self.flow.progress.committed(receipt, attempt.entry.shard.rows, seconds)
        shard_log.info(
            "shard %s is committed",
            receipt.shard,
            extra={"shard": receipt.shard, "attempt": receipt.token, "outcomes": receipt.counts, "seconds": seconds},
        )
        self.quarantined += receipt.counts["quarantined"]
        fraction = self.flow.context.spec.quality.max_quarantined_fraction
        if self.quarantined > self.excused + fraction * (self.planned - self.excused):
            raise PermanentError(
                f"{self.quarantined} of the {self.planned} samples of this run are quarantined, more than "
                f"quality.max_quarantined_fraction {fraction:g} allows, for example {receipt.example.rstrip('.')}: fix "
                "the input or raise the fraction; what is committed stays."
            )

    # --- faults ------------------------------------------------------------------------------------------------------

    def _fail(self, queue: Queue, attempt: Attempt, error: BaseException) -> None:
        """React to the fault that ended a step of an attempt. Raises PermanentError for any other error."""
        stage, error = first_failure(attempt.read, attempt.summaries, error)
        try:
            fault = classify(stage, error, attempt.shard)
        except PermanentError:
            if not attempt.is_superseded:
                raise
            self.flow.remove(queue, attempt)
            return
        if fault.worker_is_gone and queue.worker is not None:
            self.flow.lose(queue.worker, fault)
        elif attempt.is_superseded:
            self.flow.remove(queue, attempt)
        elif self.flow.budgets.is_blamed(attempt.entry, fault):
            self.flow.budgets.blame(attempt.entry, fault)
            if self.flow.crashes.needs_bisection(attempt.entry, stage):
                self.flow.chains.search(attempt, stage)
            elif stage == "finish":
                self.flow.finish(attempt)
            else:
                self.flow.remove(queue, attempt)
                self.flow.requeue(attempt.entry)
        else:
            due = time.monotonic() + self.flow.budgets.charge(attempt.entry, fault)
            if stage == "finish" and fault.kind != "object":
                attempt.wait_to_finish(due)
            else:
                self.flow.remove(queue, attempt)
                self.flow.requeue(attempt.entry, due)
