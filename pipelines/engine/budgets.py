"""Retry budgets of each shard, for infrastructure faults and for deaths it is blamed for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from jointdit.errors import PermanentError
from pipelines.engine.faults import Fault
from pipelines.engine.isolation import Crashes
from pipelines.engine.progress import Progress
from pipelines.ledger.entries import PlannedShard
from pipelines.spec.job import RetriesSpec
from pipelines.store.retries import backoff_seconds

logger = logging.getLogger(__name__)


class Budgets:
    """Counts the faults of each shard: infrastructure faults for this run, deaths it is blamed for in the ledger."""

    def __init__(self, retries: RetriesSpec, crashes: Crashes, progress: Progress) -> None:
        self.retries, self.crashes, self.progress = retries, crashes, progress
        self._faults: Counter[str] = Counter()
        self._memory_kills: Counter[str] = Counter()

    def is_blamed(self, entry: PlannedShard, fault: Fault) -> bool:
        """Whether a shard is blamed for a fault. Call it once per fault.

        A process that was killed because its node ran out of memory may be the victim of another process, so its shard
        is retried after a backoff. A shard whose processes keep being killed is blamed.
        """
        if fault.kind != "memory":
            return fault.kind == "crash"
        self._memory_kills[entry.shard.id] += 1
        return self._memory_kills[entry.shard.id] > max(1, self.retries.crash)

    def blame(self, entry: PlannedShard, fault: Fault, samples: Sequence[str] = ()) -> None:
        """Record a death that a shard is blamed for. Raises PermanentError if no single row of it causes the deaths."""
        count = self.crashes.record(entry, fault.stage, str(fault), samples)
        self.progress.retried("crash")
        logger.warning(
            "shard %s killed a process (%s, %d so far): %s",
            entry.shard.id,
            fault.stage,
            count,
            fault,
            extra={"shard": entry.shard.id, "attempt": count, "stage": fault.stage, "fault": "crash"},
        )

    def charge(self, entry: PlannedShard, fault: Fault) -> float:
        """Count a fault that no shard is blamed for; returns the seconds to wait before the retry.

        Raises:
            PermanentError: the budget is used up.
        """
        self._faults[entry.shard.id] += 1
        self.progress.retried(fault.kind)
        count, budget = self._faults[entry.shard.id], self.retries.infrastructure
        if count > budget:
            raise PermanentError(
                f"shard {entry.shard.id} met {count} infrastructure faults, more than retries.infrastructure {budget}: "
                f"the last was {type(fault.error).__name__}, {fault}; what is committed stays."
            ) from fault.error
        delay = backoff_seconds(count)
        logger.warning(
            "shard %s: %s fault in %s, retry in %.1f s (%d of %d): %s",
            entry.shard.id,
            fault.kind,
            fault.stage,
            delay,
            count,
            budget,
            fault,
            extra={"shard": entry.shard.id, "attempt": count, "stage": fault.stage, "fault": fault.kind},
        )
        return delay
