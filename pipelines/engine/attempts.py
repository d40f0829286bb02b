"""Chains of tasks in flight, as the driver sees them: references, never pixels.

    read (task) -> parts -> worker.generate, a call a part (actor) -> finish (task): filter, encode, write, commit

A chain is submitted without waiting. Ray itself retries nothing: it would rerun `finish` with the same attempt.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pipelines.engine.faults import Stage, count_done, failure_of, is_done
from pipelines.engine.isolation import Bisection
from pipelines.ledger.entries import PlannedShard
from pipelines.stages.read import Isolation


@dataclass(eq=False)
class Search:
    """A bisection under way: one try at a time, in a process of its own."""

    stage: Stage
    bisection: Bisection
    samples: list[str] = field(default_factory=list)  # for finish: what the positions stand for
    reference: Any = None
    submitted: float = 0.0
    try_at: float | None = None  # after a fault of the store, by the driver's monotonic clock


@dataclass(eq=False)
class Attempt:
    """One chain in flight."""

    entry: PlannedShard
    isolation: Isolation
    read: Any  # of a ReadSummary
    rows: Any
    parts: list[Any]
    outputs: list[Any] = field(default_factory=list)
    summaries: list[Any] = field(default_factory=list)
    receipt: Any = None  # of finish; None while suspects are submitted one by one, and until finish is tried again
    finish_at: float | None = None  # when finish is tried again, by the driver's monotonic clock
    search: Search | None = None
    moved: float = field(default_factory=time.monotonic)  # when it was last submitted, read, or generated a part
    began: float | None = None  # when its worker had nothing else to generate any more
    has_input: bool = False
    done: int = 0  # parts generated
    superseded: bool = False  # its shard has a commit; it stays because its worker is at it

    @property
    def shard(self) -> str:
        """The shard's id."""
        return self.entry.shard.id

    @property
    def is_generated(self) -> bool:
        """Whether all its parts went through the model, at the last look."""
        return self.done == len(self.parts)

    @property
    def awaited(self) -> Any:
        """The reference that ends it, or its next step; None while it only waits for a time."""
        if self.search is not None:
            return self.search.reference
        if self.finish_at is not None:
            return None
        if self.receipt is not None:
            return self.receipt
        return self.summaries[-1] if self.summaries else self.read

    def note_progress(self) -> bool:
        """Whether something was read or generated since the last look."""
        has_input, done = self.has_input or is_done(self.read), count_done(self.summaries)
        has_moved = has_input > self.has_input or done > self.done
        self.has_input, self.done = has_input, done
        if has_moved:
            self.moved = time.monotonic()
        return has_moved


@dataclass(eq=False)
class Queue:
    """The chains of one worker, in the order in which it generates them."""

    attempts: list[Attempt] = field(default_factory=list)
    moved: float = 0.0  # when it last got work or finished a part, by the driver's monotonic clock

    def mark_begun(self) -> bool:
        """Start the clock of each attempt whose turn has come; whether the worker has nothing to generate any more."""
        for attempt in self.attempts:
            if attempt.began is None:
                attempt.began = time.monotonic()
            if not attempt.is_generated:
                return False
        return True


@dataclass(order=True)
class Waiting:
    """A shard without a worker; `due` lies in the future after a fault."""

    due: float
    order: int
    entry: PlannedShard = field(compare=False)


def has_results(attempt: Attempt) -> bool:
    """Whether an attempt needs its worker no more: all is generated, and what is left is to finish it."""
    if attempt.receipt is None and attempt.finish_at is None:
        return False
    return all(is_done(summary) and failure_of(summary) is None for summary in attempt.summaries)
