"""Check the cluster, the limits, and what hangs or is late, once a second.

No result announces that a node joins or leaves, that a limit is reached, that a worker or a finish hangs, or that a
shard takes far longer than the others. So the driver checks once a second.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque

from pipelines.engine.attempts import Attempt, Phase, Queue
from pipelines.engine.faults import Fault
from pipelines.engine.flow import ABANDONED_AFTER, Flow
from pipelines.engine.limits import Limits
from pipelines.engine.metrics import values_of
from pipelines.engine.workers import Worker
from pipelines.spec.job import ResourcesSpec

CHECK_SECONDS = 1.0
FEWEST_SHARDS = 3  # for a meaningful median
REMEMBERED_SHARDS = 1000
logger = logging.getLogger(__name__)


class Oversight:
    """Watches the cluster, the limits and the progress of attempts, acts on them, and exports the state of the run."""

    def __init__(self, flow: Flow, limits: Limits) -> None:
        self.flow, self.limits = flow, limits
        self.room = flow.pool.plan.workers  # workers that the cluster can hold
        self.pace = Pace(flow.context.spec.resources)
        self.metrics = flow.executor.exporter(flow.context.spec.name)
        self._checked = float("-inf")

    @property
    def stall_seconds(self) -> float:
        """The longest time that a part, a read or a finish may take."""
        return self.flow.context.spec.resources.stall_seconds

    def run_checks(self) -> None:
        """Run all checks and act on them, at most once a second, or at once after a worker was lost."""
        now = self.flow.now()
        if now - self._checked < CHECK_SECONDS and not self.flow.has_lost:
            return
        self._checked, self.flow.has_lost = now, False
        if not self.flow.is_stopping and self.limits.is_reached(self.flow.pool.usage()):
            self._wind_down()
        self._follow_cluster()
        for worker, queue in list(self.flow.queues.items()):
            if not worker.is_up:
                self.flow.welcome(worker)
            if worker not in self.flow.queues:
                continue  # it could not start, or was lost with another one
            if worker.is_leaving and queue.mark_begun(now):
                self.flow.retire(worker)
            elif queue.attempts and now - queue.moved > self.stall_seconds:
                self._check_stalled(worker, queue)
        self._renew_finishes(now)
        self._start_stragglers_again()
        self.flow.progress.show(self.flow.samples_generated())
        self.export_metrics()

    def export_metrics(self) -> None:
        """Export the state of the run to Prometheus."""
        usage = self.flow.progress.usage + self.flow.pool.usage()
        shards = {"waiting": len(self.flow.waiting), "in_flight": self.flow.shards_in_flight}
        price, workers = self.flow.context.spec.price, self.flow.pool.states()
        self.metrics.export(values_of(self.flow.progress, usage, price, workers, shards))

    def staff(self) -> None:
        """Start workers up to the room that the cluster has, and end those beyond it."""
        pool = self.flow.pool
        for worker in pool.fill(self.room, len(self.flow.waiting) + self.flow.shards_in_flight):
            has_gpu = pool.plan.num_gpus > 0
            reason = "it no longer needs to wait for a GPU" if has_gpu else "read and finish tasks need its CPUs"
            logger.warning("worker %d is ended: %s", worker.number, reason)
            self.flow.retire(worker)
        for worker in pool.workers:
            self.flow.queues.setdefault(worker, Queue(worker))

    def _follow_cluster(self) -> None:
        """Move work off nodes that are being drained, and have as many workers as there is room for."""
        state = self.flow.executor.cluster_state(self.flow.pool.plan)
        if state is not None:
            self.room = state.room
            self.flow.bytes.follow(state.store_bytes)
            for worker in self.flow.pool.mark_leaving(state):
                self._move_from(worker)
        if not self.flow.is_stopping:
            self.staff()

    def _move_from(self, worker: Worker) -> None:
        """Requeue the shards that a worker on a draining node has not started; it finishes its current one."""
        moving = self.flow.take_unstarted(self.flow.queues[worker])
        logger.warning("worker %d leaves: its node is being drained; shards that move: %d", worker.number, len(moving))
        for entry in moving:
            self.flow.progress.retried("node")
            self.flow.requeue(entry)

    def _wind_down(self) -> None:
        """Stop at a limit: workers finish their current shards and leave, the rest is left to the next run."""
        self.flow.progress.note(f"{self.limits.stopped}: workers finish their current shards, the rest is left.")
        self.flow.is_stopping = True
        left = self.flow.waiting.clear()
        for worker, queue in self.flow.queues.items():
            worker.is_leaving = True
            left += self.flow.take_unstarted(queue)
        for entry in left:
            self.flow.requeue(entry)

    def _check_stalled(self, worker: Worker, queue: Queue) -> None:
        """End a worker that had its input and generated nothing; read and finish tasks have their own deadlines."""
        generating = next((attempt for attempt in queue.attempts if not attempt.is_generated), None)
        if generating is None or generating.phase is Phase.SEARCHING:
            queue.moved = self.flow.now()
        elif generating.has_input:
            error = TimeoutError(f"it finished no batch within {self.stall_seconds:g} seconds")
            self.flow.lose(worker, Fault("generate", "crash", error))
        elif self.flow.now() - generating.moved > ABANDONED_AFTER * self.stall_seconds:
            # The worker's later calls wait behind those of this attempt, so it does nothing else.
            error = TimeoutError(f"its input was not read within {ABANDONED_AFTER * self.stall_seconds:g} seconds")
            self.flow.lose(worker, Fault("read", "timeout", error))

    def _renew_finishes(self, now: float) -> None:
        """Retry a finish that did not end itself at its deadlines: its machine is frozen or unreachable."""
        before = now - ABANDONED_AFTER * self.stall_seconds
        for attempt in self.flow.live():
            if attempt.moved < before and attempt.phase is Phase.SUBMITTED and attempt.is_generated:
                error = TimeoutError(f"it did not end within {now - attempt.moved:.0f} seconds")
                delay = self.flow.budgets.charge(attempt.entry, Fault("finish", "timeout", error))
                self.flow.wait_to_finish(attempt, delay)

    def _start_stragglers_again(self) -> None:
        """Start a second attempt at a shard far beyond the median on an idle worker; the first commit wins."""
        if self.flow.is_due():
            return
        idle = [
            worker
            for worker, queue in self.flow.queues.items()
            if worker.is_up and not worker.is_leaving and not queue.attempts
        ]
        if not idle:
            return
        now = self.flow.now()
        for attempt in list(self.flow.live()):
            if not self.pace.is_late(attempt, now):
                continue
            isolated = attempt.isolation.suspects or attempt.phase is Phase.SEARCHING
            is_single = len(self.flow.live_of(attempt.shard)) == 1
            if idle and is_single and not isolated and self.flow.has_room(attempt.entry):
                worker = idle.pop()
                self.flow.progress.retried("straggler")
                logger.warning("shard %s is late and is started again on worker %d", attempt.shard, worker.number)
                self.flow.start(worker, attempt.entry)


class Pace:
    """Seconds per sample of committed shards; the clock of a shard starts when its worker reaches it."""

    def __init__(self, resources: ResourcesSpec) -> None:
        self.factor, self.least_seconds = resources.straggler_factor, resources.straggler_seconds
        self._seconds_per_sample: deque[float] = deque(maxlen=REMEMBERED_SHARDS)
        self._median: float | None = None  # None: to be computed

    def committed(self, attempt: Attempt, now: float) -> None:
        """Record the time of a committed shard."""
        if attempt.began is not None:
            self._seconds_per_sample.append((now - attempt.began) / attempt.samples)
            self._median = None

    def is_late(self, attempt: Attempt, now: float) -> bool:
        """Whether a shard takes far longer than the median."""
        if self.factor is None or attempt.began is None or len(self._seconds_per_sample) < FEWEST_SHARDS:
            return False
        if self._median is None:
            self._median = statistics.median(self._seconds_per_sample)
        usual = self._median * attempt.samples
        return now - attempt.began > max(self.least_seconds, self.factor * usual)
