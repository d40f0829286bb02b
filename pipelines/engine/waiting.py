"""The shards of a run that wait for a worker."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from pipelines.ledger.entries import PlannedShard


@dataclass(order=True)
class _Delayed:
    """A shard that waits for the end of a backoff."""

    due: float  # by the driver's monotonic clock
    entry: PlannedShard = field(compare=False)


class Waiting:
    """Shards in the order of the plan, then those that wait for a backoff.

    A shard that met a fault comes after all others, so that an outage of the store does not use up its budget.
    """

    def __init__(self) -> None:
        self._ready: deque[PlannedShard] = deque()
        self._delayed: list[_Delayed] = []  # a heap

    def __len__(self) -> int:
        return len(self._ready) + len(self._delayed)

    def extend(self, entries: Sequence[PlannedShard]) -> None:
        """Add shards behind all others."""
        self._ready.extend(entries)

    def put_back(self, entry: PlannedShard, due: float = 0.0) -> None:
        """Add a shard before all others, or at `due` behind them."""
        if due:
            heapq.heappush(self._delayed, _Delayed(due, entry))
        else:
            self._ready.appendleft(entry)

    def first(self, now: float, count: int = 1) -> list[PlannedShard]:
        """Return the next shards, at most `count`. Of those that wait for a backoff, only the one that ended first."""
        entries = list(islice(self._ready, count))
        if len(entries) < count and self._delayed and self._delayed[0].due <= now:
            entries.append(self._delayed[0].entry)
        return entries

    def pop(self) -> PlannedShard:
        """Remove and return the next shard, the first of `first`."""
        return self._ready.popleft() if self._ready else heapq.heappop(self._delayed).entry

    def next_due(self, now: float) -> float:
        """Return when the next backoff ends; infinity if none is under way."""
        return self._delayed[0].due if self._delayed and self._delayed[0].due > now else math.inf

    def clear(self) -> list[PlannedShard]:
        """Remove and return all shards."""
        entries = list(self)
        self._ready.clear()
        self._delayed.clear()
        return entries

    def __iter__(self) -> Iterator[PlannedShard]:
        yield from self._ready
        yield from (delayed.entry for delayed in self._delayed)
