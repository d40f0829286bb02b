"""Limits of a run: a time to stop at, and budgets of rows, GPU-hours and cost.

At a limit the run starts no more shards, and finishes and commits those that workers are busy with. It leaves the rest
to the next run. So it ends one shard's time after the limit, not at once.
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
    """The limits of one run; `stopped` is a sentence about the limit that was reached, empty before."""

    def __init__(
        self,
        budget: BudgetSpec | None = None,
        price: PriceSpec | None = None,
        until: datetime | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`until`: a time by this machine's clock."""
        self.budget, self.price, self.until, self.clock = budget or BudgetSpec(), price or PriceSpec(), until, clock
        self.stopped = ""
        self._rows = 0  # of shards that were chosen

    def choose(self, entries: Sequence[PlannedShard]) -> list[PlannedShard]:
        """Return the first shards that budget.max_rows allows; the last one may exceed it."""
        chosen: list[PlannedShard] = []
        for entry in entries:
            if self.budget.max_rows is not None and self._rows >= self.budget.max_rows:
                self.stopped = self.stopped or f"budget.max_rows {self.budget.max_rows} is reached"
                break
            self._rows += entry.shard.rows
            chosen.append(entry)
        return chosen

    def is_reached(self, usage: Usage) -> bool:
        """Whether the time, the GPU-hours or the cost have reached their limit; sets `stopped` if so."""
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
    """Parse a time of day, such as "06:00" for the next one in this machine's time zone, or a date and time.

    Raises:
        SpecError: the text is neither, or the time has passed.
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
        raise SpecError(f"--until {text!r} is not a time: give one such as 06:00 or 2027-01-31T06:00.") from None
    if when.timestamp() <= now.timestamp():
        raise SpecError(f"--until {text!r} has passed: give a time in the future.")
    return when
