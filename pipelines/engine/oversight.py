"""Oversight of a run as time goes by: the cluster, limits, and workers, tasks and shards that hang or are late.

A node that goes or comes, a limit that is met, a worker that hangs, a finish that never ended, a shard far beyond the
others: none of these tells of itself by a result, so the driver looks once a second.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter, deque

from pipelines.engine.attempts import Attempt, Queue
from pipelines.engine.chains import take_what_is_not_begun
from pipelines.engine.cluster import ClusterWatch
from pipelines.engine.faults import Fault
from pipelines.engine.flow import Flow
from pipelines.engine.limits import Limits
from pipelines.engine.metrics import Metrics, values_of
from pipelines.engine.workers import Worker
from pipelines.spec.job import ResourcesSpec

LOOK_SECONDS = 1.0
ABANDONED_AFTER = 4  # stall_seconds: a task that did not end itself at its deadlines is on a machine that is gone
FEWEST_SHARDS = 3  # before their median means something
REMEMBERED_SHARDS = 1000
logger = logging.getLogger(__name__)


class Oversight:
    """Looks at the cluster, at what was generated, at who hangs and who is late, and tells how it stands."""

    def __init__(self, flow: Flow, limits: Limits) -> None:
        self.flow, self.pool, self.progress, self.limits = flow, flow.pool, flow.progress, limits
        self.resources = flow.resources
        self.cluster, self.room = ClusterWatch(flow.pool.plan), flow.pool.plan.workers
        self.pace = Pace(self.resources)
        self.metrics = Metrics(flow.context.spec.name)
        self._looked = 0.0

    def run_checks(self) -> None:
        """Look and act, unless the last look was a moment ago and no worker was lost since."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS and not self.flow.has_lost:
            return
        self._looked, self.flow.has_lost = now, False
        if not self.flow.is_stopping and self.limits.is_reached(self.pool.usage()):
            self._wind_down()
        self._follow_cluster()
        for worker, queue in list(self.flow.queues.items()):
            have_moved = [attempt.note_progress() for attempt in queue.attempts]
            if any(have_moved):
                queue.moved = now
            if queue.mark_begun() and worker.is_leaving:
                self.flow.retire(worker)
                self.pool.retire(worker)
            elif queue.attempts and now - queue.moved > self.resources.stall_seconds:
                self._unstick(worker, queue)
        self._renew_finishes(now)
        self._start_stragglers_again()
        live = sorted(self.flow.live(), key=lambda attempt: attempt.done)
        shares = {a.shard: a.entry.samples * a.done / len(a.parts) for a in live}
        self.progress.show(sum(shares.values()))
        self.tell()

    def tell(self) -> None:
        """Tell Prometheus how it stands."""
        usage = self.progress.usage + self.pool.usage()
        shards = {"waiting": len(self.flow.waiting), "in_flight": len({attempt.shard for attempt in self.flow.live()})}
        self.metrics.tell(values_of(self.progress, usage, self.flow.context.spec.price, self.pool.states(), shards))

    def _follow_cluster(self) -> None:
        """Let workers leave nodes that go, and have as many as there is room for."""
        state = self.cluster.current_state()
        if state is not None:
            self.room = state.room
            for worker in self.pool.mark_leaving(state):
                self._move_from(worker)
        if self.flow.is_stopping:
            return  # nobody takes the place of workers that leave
        self.staff()

    def staff(self) -> None:
        """Have as many workers as there is room for."""
        for worker in self.pool.fill(self.room, self.flow.shards_left):
            has_gpu = self.pool.plan.num_gpus > 0
            why = "it need not wait for a GPU any more" if has_gpu else "it leaves no room for read and finish tasks"
            logger.warning("worker %d goes: %s", worker.number, why)
            self.flow.retire(worker)
            self.pool.retire(worker)
        for worker in self.pool.workers:
            self.flow.queues.setdefault(worker, Queue())

    def _move_from(self, worker: Worker) -> None:
        """The node is about to go: the worker finishes what it is at, the rest moves."""
        moving = take_what_is_not_begun(self.flow.queues[worker])
        logger.warning("worker %d leaves: its node is being drained; shards that move: %d", worker.number, len(moving))
        for entry in moving:
            self.progress.retried("node")
            self.flow.again(entry)

    def _wind_down(self) -> None:
        """A limit is met: workers leave when they have finished what they are at, the rest is left to the next run."""
        self.progress.note(f"{self.limits.stopped}: what workers are at is finished, the rest is left.")
        self.flow.is_stopping = True
        left = [waiting.entry for waiting in self.flow.waiting]
        self.flow.waiting = []
        for worker in list(self.flow.queues):
            worker.is_leaving = True
            left += take_what_is_not_begun(self.flow.queues[worker])
        for entry in left:
            self.flow.again(entry)

    def _unstick(self, worker: Worker, queue: Queue) -> None:
        """A worker that had its input all the while hangs; read and finish tasks see to their own deadlines."""
        limit = self.resources.stall_seconds
        generating = next((attempt for attempt in queue.attempts if not attempt.is_generated), None)
        if generating is None or generating.search is not None:
            queue.moved = time.monotonic()
        elif generating.has_input:
            self.flow.lose(
                worker, Fault("generate", "crash", TimeoutError(f"it finished no batch within {limit:g} seconds"))
            )
        elif time.monotonic() - generating.moved > ABANDONED_AFTER * limit:
            # Behind calls that wait for this input the worker does nothing else.
            error = TimeoutError(f"its input was not read within {ABANDONED_AFTER * limit:g} seconds")
            self.flow.lose(worker, Fault("read", "timeout", error))

    def _renew_finishes(self, now: float) -> None:
        """Submit a finish again that did not even end itself: its machine is frozen, or cut off."""
        for attempt in self.flow.live():
            pending = attempt.is_generated and attempt.receipt is not None and attempt.search is None
            if pending and now - attempt.moved > ABANDONED_AFTER * self.resources.stall_seconds:
                error = TimeoutError(f"it did not end within {now - attempt.moved:.0f} seconds")
                due = now + self.flow.budgets.charge(attempt.entry, Fault("finish", "timeout", error))
                attempt.receipt, attempt.finish_at = None, due

    def _start_stragglers_again(self) -> None:
        """Start a shard far beyond the median again on a worker that has nothing to do; the first commit wins."""
        idle = [worker for worker, queue in self.flow.queues.items() if worker.is_up and not queue.attempts]
        idle = [] if self.flow.is_due() else [worker for worker in idle if not worker.is_leaving]
        attempts = list(self.flow.live())
        often = Counter(attempt.shard for attempt in attempts)
        for attempt in attempts:
            isolated = attempt.isolation.suspects or attempt.search is not None
            if idle and often[attempt.shard] == 1 and not isolated and self.pace.is_late(attempt):
                worker = idle.pop()
                self.progress.retried("straggler")
                logger.warning("shard %s is late and is started again on worker %d", attempt.shard, worker.number)
                self.flow.start(worker, attempt.entry)


class Pace:
    """Seconds a sample of the shards that were committed; the clock of a shard runs while it is its worker's first."""

    def __init__(self, resources: ResourcesSpec) -> None:
        self.factor, self.least_seconds = resources.straggler_factor, resources.straggler_seconds
        self._seconds_a_sample: deque[float] = deque(maxlen=REMEMBERED_SHARDS)

    def committed(self, attempt: Attempt) -> None:
        """Learn from a shard that is done."""
        if attempt.began is not None:
            self._seconds_a_sample.append((time.monotonic() - attempt.began) / attempt.entry.samples)

    def is_late(self, attempt: Attempt) -> bool:
        """Whether a shard is far beyond the median."""
        if self.factor is None or attempt.began is None or len(self._seconds_a_sample) < FEWEST_SHARDS:
            return False
        usual = statistics.median(self._seconds_a_sample) * attempt.entry.samples
        return time.monotonic() - attempt.began > max(self.least_seconds, self.factor * usual)
