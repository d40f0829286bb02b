"""Bring shards to their commits on a pool of workers, whatever fails.

The only lasting state is in the ledger. flow.py holds the shards in flight, oversight.py watches the cluster and what
hangs or is late, and faults.py classifies faults. The reactions:

    fault of the infrastructure     retry the shard after a backoff, until retries.infrastructure is used up
    dead worker, reader or finish   blame the shard it was busy with (isolation.py), retry its neighbours
    node that leaves                replace its workers elsewhere, move the shards they have not started, blame nobody
    straggler                       start a second attempt on an idle worker; the first commit wins
    commit of another driver        skip the shard; its commit is looked for before each attempt
    limit (limits.py)               workers finish the shard they are busy with, no other shard is started
    any other error                 stop the run; commits stay

The loop does work for each result that arrives and each shard that it starts, and none that grows with the commits.
A generated shard keeps its results while finish is retried, so a fault of the store costs no GPU time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from jointdit.errors import PermanentError
from pipelines.engine.attempts import Attempt, Phase
from pipelines.engine.chains import seconds_of, summaries_of
from pipelines.engine.faults import SETTLE_SECONDS, classify, first_failure
from pipelines.engine.flow import Flow
from pipelines.engine.limits import Limits
from pipelines.engine.lookup import AT_ONCE, CommitLookup
from pipelines.engine.oversight import Oversight
from pipelines.engine.searches import step_search
from pipelines.engine.workers import Worker
from pipelines.ledger.counting import InputVersions
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.plan_tables import versions_of
from pipelines.stages.finish import Receipt
from pipelines.store.retries import patiently

POLL_SECONDS = 1.0
MOST_AHEAD = 64  # shards that are read while workers load their model
logger = logging.getLogger(__name__)
shard_log = logging.getLogger("pipelines.shards")  # one line per shard, for JSON logs


class Dispatcher:
    """Brings shards to their commits on a pool of workers."""

    def __init__(self, flow: Flow, limits: Limits) -> None:
        self.flow, self.oversight = flow, Oversight(flow, limits)
        self.lookup = CommitLookup(flow.ledger)
        self.quarantined = self.planned = 0  # samples of this run
        self.excused = 0  # planned samples that failed before or whose file has changed: expected failures

    def run(self, entries: Sequence[PlannedShard]) -> None:
        """Return when every shard has its commit; at a limit, when those that workers are busy with have theirs.

        Raises:
            PermanentError: a permanent fault, a spent budget, or too many quarantined samples. Commits stay.
        """
        retries = self.flow.context.spec.retries
        versions = InputVersions(versions_of(patiently(self.flow.ledger.plan_tables, retries.infrastructure)))
        self.flow.waiting.extend(entries)
        for entry in entries:
            self.planned += entry.samples
            self.excused += entry.samples if entry.retry else entry.samples - versions.current_samples(entry)
            self.flow.progress.plan(entry.samples)
        self.oversight.staff()
        while self.flow.waiting or self.flow.shards_in_flight:
            self._submit()
            self._read_ahead()
            self._collect()
            self.oversight.run_checks()
        self.oversight.export_metrics()

    def take_committed(self) -> set[str]:
        """Return the shards whose commit this dispatcher has seen since the last call."""
        committed, self.flow.committed = self.flow.committed, set()
        return committed

    def close(self) -> None:
        """Stop looking for commits."""
        self.lookup.close()

    # --- submit ------------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Give each worker its share of the waiting shards, those with the fewest first."""
        while chosen := self._choose():
            committed = self.lookup.committed([entry.shard.id for _, entry in chosen])
            for worker, entry in chosen:
                if entry.shard.id in committed:
                    self._skip(entry)
                else:
                    self.flow.start(worker, entry)

    def _choose(self) -> list[tuple[Worker, PlannedShard]]:
        """Take the next shards from the waiting ones, at most one for each worker that has room.

        A suspect may kill its worker, so its shard shares a queue with no other one.
        """
        chosen: list[tuple[Worker, PlannedShard]] = []
        if not self.flow.is_due():
            return chosen
        now, bytes_ = self.flow.now(), 0
        for worker in self._workers_with_room()[:AT_ONCE]:
            attempts = self.flow.queues[worker].attempts
            entries = self.flow.waiting.first(now)
            if not entries:
                break
            (entry,) = entries
            if attempts and (self.flow.crashes.isolation(entry).suspects or attempts[0].isolation.suspects):
                continue
            if not self.flow.has_room(entry, bytes_):
                if not attempts:
                    self.flow.bytes.warn(entry)
                break
            bytes_ += self.flow.bytes.estimate(entry)
            chosen.append((worker, self.flow.waiting.pop()))
        return chosen

    def _workers_with_room(self) -> list[Worker]:
        """Return the workers that may get a shard, at most `shards_in_flight` at once, by the shards that they have."""
        room, queues = self.flow.context.spec.resources.shards_in_flight, self.flow.queues
        left = len(self.flow.waiting) + self.flow.shards_in_flight
        if left < room * len(queues):  # share the last ones
            room = min(room, math.ceil(left / max(1, sum(not worker.is_leaving for worker in queues))))
        workers = [
            worker
            for worker, queue in queues.items()
            if len(queue.attempts) < room and worker.is_up and not worker.is_leaving
        ]
        return sorted(workers, key=lambda worker: len(queues[worker].attempts))

    def _skip(self, entry: PlannedShard) -> None:
        """Leave out a shard that another driver has committed."""
        self.flow.committed.add(entry.shard.id)
        self.flow.progress.plan(-entry.samples)

    def _read_ahead(self) -> None:
        """Read one shard per worker that is loading its model, so that its first input is ready."""
        loading = sum(not worker.is_up and worker.node is not None for worker in self.flow.queues)
        entries = self.flow.waiting.first(self.flow.now(), min(loading, MOST_AHEAD))
        self.flow.chains.read_ahead([(entry, self.flow.crashes.isolation(entry)) for entry in entries])

    # --- collect -----------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Wait for results, then take every attempt that can go on to its next step."""
        attempts: dict[Attempt, None] = {}
        for result in self.flow.executor.wait(self._seconds_to_wait()):
            if isinstance(result.owner, Worker):
                if result.owner in self.flow.queues:
                    self.flow.welcome(result.owner)
            elif isinstance(result.owner, Attempt):
                attempts[result.owner] = None
        for attempt in attempts:
            if attempt.queue is not None:
                self.flow.note_progress(attempt)
        for attempt in [*attempts, *self.flow.timed]:
            if attempt.queue is not None:  # it may just have been removed with its worker
                self._step(attempt)

    def _seconds_to_wait(self) -> float:
        now = self.flow.now()
        dues = [attempt.due for attempt in self.flow.timed if attempt.awaited is None and attempt.due > now]
        return max(0.01, min([POLL_SECONDS, self.flow.waiting.next_due(now) - now, *(due - now for due in dues)]))

    def _step(self, attempt: Attempt) -> None:
        """Take an attempt to its next step, if the result or the time that it waits for is there."""
        if attempt.phase is Phase.SEARCHING:
            step_search(self.flow, attempt)
        elif attempt.awaited is not None:
            if attempt.awaited.is_done:
                self._advance(attempt)
        elif self.flow.now() >= attempt.due:
            self.flow.finish(attempt)
        if attempt.queue is not None and attempt.waits_for_time:
            self.flow.timed[attempt] = None
        else:
            self.flow.timed.pop(attempt, None)

    def _advance(self, attempt: Attempt) -> None:
        """Take the result of an attempt's last step and submit its next one, or end it."""
        assert attempt.queue is not None
        assert attempt.awaited is not None
        worker = attempt.queue.worker
        if attempt.awaited.error is not None:
            self._fail(attempt, attempt.awaited.error)
        elif attempt.phase is not Phase.STEPWISE:
            self._end(attempt, attempt.awaited.value)
        elif worker is not None:
            # One suspect at a time: a worker that dies right after a result can lose the result.
            self.flow.chains.submit_next(worker, attempt, self.flow.crashes.isolation(attempt.entry))

    def _end(self, attempt: Attempt, receipt: Receipt) -> None:
        """Remove an attempt whose chain has ended, and count its shard unless another attempt was first."""
        assert attempt.queue is not None
        worker = attempt.queue.worker
        self.flow.remove(attempt)
        if worker is not None:
            model = self.flow.context.spec.model
            for summary in summaries_of(attempt):
                self.flow.pool.was_busy(summary.seconds)
                self.flow.progress.computed_in(summary.dtype, model.dtype)
                self.flow.pool.generated(worker, summary.batch_size, model.batch_size)
                self.flow.bytes.note_generated(summary.samples, summary.bytes)
        if attempt.is_superseded:
            return
        self.flow.committed.add(attempt.shard)
        self.flow.supersede(attempt.shard)
        if receipt.token.startswith(self.flow.chains.run):  # the commit is by an attempt of this run
            self.oversight.pace.committed(attempt, self.flow.now())
            self._count(attempt, receipt, seconds_of(attempt, receipt) if worker is not None else {})
        else:
            self.flow.progress.plan(-attempt.entry.samples)

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

    def _fail(self, attempt: Attempt, error: BaseException) -> None:
        """React to the fault that ended a step of an attempt. Raises PermanentError for any other error."""
        failure = first_failure(attempt.read, attempt.summaries)
        if failure is None and not all(step.is_done for step in (attempt.read, *attempt.summaries)):
            # The step that failed first has no error yet.
            attempt.failed = self.flow.now() if attempt.failed is None else attempt.failed
            if self.flow.now() - attempt.failed < SETTLE_SECONDS:
                return
        attempt.failed = None
        stage, error = failure or ("finish", error)
        try:
            fault = classify(stage, error, attempt.shard)
        except PermanentError:
            if not attempt.is_superseded:
                raise
            self.flow.remove(attempt)
            return
        worker = attempt.queue.worker if attempt.queue is not None else None
        if fault.worker_is_gone and worker is not None:
            self.flow.lose(worker, fault)
        elif attempt.is_superseded:
            self.flow.remove(attempt)
        elif self.flow.budgets.is_blamed(attempt.entry, fault):
            self.flow.budgets.blame(attempt.entry, fault)
            if self.flow.crashes.needs_bisection(attempt.entry, stage):
                self.flow.chains.search(attempt, stage)
            elif stage == "finish":
                self.flow.finish(attempt)
            else:
                self.flow.remove(attempt)
                self.flow.requeue(attempt.entry)
        else:
            seconds = self.flow.budgets.charge(attempt.entry, fault)
            if stage == "finish" and fault.kind != "object":
                self.flow.wait_to_finish(attempt, seconds)
            else:
                self.flow.remove(attempt)
                self.flow.requeue(attempt.entry, seconds)
