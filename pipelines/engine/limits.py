"""When a run is to stop although there is more to make: at a time, or when what it may take is taken.

It stops cleanly: no shard is begun any more, those that workers are at are finished and committed, what was only queued
is left for the next run. So it ends a shard's time after the limit, not at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from jointdit.errors import SpecError
from pipelines.engine.usage import Usage
from pipelines.ledger.entries import PlannedShard
from pipelines.spec.running import BudgetSpec, PriceSpec


class Limits:
    """The limits of one run; `stopped` says which one was met, in words."""

    def __init__(
        self,
        budget: BudgetSpec | None = None,
        price: PriceSpec | None = None,
        until: datetime | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`until`: a time of this machine's clock."""
        self.budget, self.price, self.until, self.clock = budget or BudgetSpec(), price or PriceSpec(), until, clock
        self.stopped = ""
        self._rows = 0  # of shards that were given out

    def choose(self, entries: Sequence[PlannedShard]) -> list[PlannedShard]:
        """The shards, in their order, that budget.max_rows has room for; the last one may reach beyond it."""
        chosen: list[PlannedShard] = []
        for entry in entries:
            if self.budget.max_rows is not None and self._rows >= self.budget.max_rows:
                self.stopped = self.stopped or f"budget.max_rows {self.budget.max_rows} is reached"
                break
            self._rows += entry.shard.rows
            chosen.append(entry)
        return chosen

    def look(self, usage: Usage) -> bool:
        """Whether the run is to stop now, by the time or by what it took."""
        budget, reason = self.budget, ""
        if self.until is not None and self.clock() >= self.until.timestamp():
            reason = f"it is {self.until:%H:%M}"
        elif budget.max_gpu_hours is not None and usage.gpu_hours >= budget.max_gpu_hours:
            reason = f"budget.max_gpu_hours {budget.max_gpu_hours:g} is spent"
        elif budget.max_cost is not None and usage.cost(self.price) >= budget.max_cost:
            reason = f"budget.max_cost {budget.max_cost:g} {self.price.currency} is spent"
        self.stopped = self.stopped or reason
        return bool(reason)


def next_time(text: str, now: datetime | None = None) -> datetime:
    """The next 06:00 for "06:00", by this machine's time zone; or a date and time, "2027-01-31 06:00".

    Raises:
        SpecError: it is neither, or it has passed.
    """
    now = now or datetime.now()
    if match := re.fullmatch(r"(\d{1,2}):(\d{2})", text.strip()):
        hour, minute = int(match[1]), int(match[2])
        if hour < 24 and minute < 60:
            when = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return when if when > now else when + timedelta(days=1)
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        raise SpecError(f"--until {text!r} is no time: give one such as 06:00 or 2027-01-31T06:00.") from None
    if when.timestamp() <= now.timestamp():
        raise SpecError(f"--until {text!r} has passed: give a time to come.")
    return when
