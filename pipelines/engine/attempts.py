"""Attempts at shards in flight, the phase of each one, and its transitions.

    read (task) -> parts -> worker.generate, one call per part (actor) -> finish (task): filter, encode, write, commit

The driver holds references, never pixels. Phases change as follows; an attempt that has ended leaves its queue:

    STEPWISE, SUBMITTED  -> SEARCHING          the reader or finish died too often
    STEPWISE             -> SUBMITTED          the last suspect was generated, and finish is submitted
    SUBMITTED            -> WAITING_TO_FINISH  finish met a fault of the infrastructure, or never ended
    WAITING_TO_FINISH    -> SUBMITTED          the backoff is over
    SEARCHING            -> SUBMITTED          the samples that kill finish are known
    any                  -> SUPERSEDED         another attempt committed the shard
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from pipelines.engine.executor import Result
from pipelines.engine.faults import Stage
from pipelines.engine.isolation import Bisection
from pipelines.engine.workers import Worker
from pipelines.ledger.entries import PlannedShard
from pipelines.stages.read import Isolation


class Phase(enum.Enum):
    """What the driver does next with an attempt."""

    STEPWISE = enum.auto()  # parts are left: submit the next one when the one before it is generated
    SUBMITTED = enum.auto()  # the whole chain is submitted: take the receipt of finish
    WAITING_TO_FINISH = enum.auto()  # all parts are generated: submit finish again after a backoff
    SEARCHING = enum.auto()  # a bisection is under way: submit its next try
    SUPERSEDED = enum.auto()  # the shard has a commit: remove the attempt when its chain ends


@dataclass(frozen=True)
class Search:
    """A bisection under way: one try at a time, in a process of its own."""

    stage: Stage
    bisection: Bisection
    samples: list[str] = field(default_factory=list)  # of finish: sample ids by position


@dataclass(eq=False)
class Attempt:
    """One chain in flight. Times are by the executor's clock."""

    entry: PlannedShard
    isolation: Isolation
    read: Result  # a ReadSummary
    ids: Any  # reference to the sample ids of each part
    rows: Any
    parts: list[Any]  # None once a part is generated, so that Ray can free it
    moved: float  # when it was last submitted, read, or generated a part
    bytes: int = 0  # that it holds in the object store (bytes_in_flight.py)
    outputs: list[Any] = field(default_factory=list)  # of the parts that were submitted
    summaries: list[Result] = field(default_factory=list)
    phase: Phase = Phase.STEPWISE
    awaited: Result | None = field(init=False)  # its end starts the next step; None until `due`
    due: float = 0.0  # when the next step is submitted
    search: Search | None = None  # in phase SEARCHING
    queue: Queue | None = None  # None before it is queued and after it has ended
    began: float | None = None  # when its worker had no earlier attempt left to generate
    failed: float | None = None  # when a step failed while others of its chain had no result
    has_input: bool = False  # whether it was read
    done: int = 0  # parts generated
    generated: float = 0.0  # samples, as many as the parts that are generated are of all
    samples: int = field(init=False)  # of the shard

    def __post_init__(self) -> None:
        self.awaited, self.samples = self.read, self.entry.samples

    @property
    def shard(self) -> str:
        """The shard's id."""
        return self.entry.shard.id

    @property
    def is_generated(self) -> bool:
        """Whether all parts had left the model when progress was last noted."""
        return self.done == len(self.parts)

    @property
    def is_superseded(self) -> bool:
        """Whether another attempt committed the shard."""
        return self.phase is Phase.SUPERSEDED

    @property
    def has_results(self) -> bool:
        """Whether it no longer needs its worker: finish has been submitted, and every part was generated."""
        if self.phase is Phase.STEPWISE or len(self.summaries) < len(self.parts):
            return False
        return all(summary.has_succeeded for summary in self.summaries)

    @property
    def waits_for_time(self) -> bool:
        """Whether its next step may start without a result."""
        return self.awaited is None or self.awaited.is_done or self.phase is Phase.SEARCHING

    def add_part(self, output: Any, summary: Result) -> None:
        """Record that the next part was submitted."""
        self.outputs.append(output)
        self.summaries.append(summary)
        self.awaited = summary

    def submit(self, receipt: Result, now: float) -> None:
        """Record that finish was submitted, for the first time or again."""
        self.phase, self.awaited, self.moved = Phase.SUBMITTED, receipt, now

    def wait_to_finish(self, due: float) -> None:
        """Wait until `due` before finish is submitted again with the same results."""
        self.phase, self.awaited, self.due = Phase.WAITING_TO_FINISH, None, due

    def begin_search(self, search: Search) -> None:
        """Begin a search, whose first try may be submitted at once."""
        self.phase, self.search, self.awaited, self.due = Phase.SEARCHING, search, None, 0.0

    def add_try(self, result: Result, now: float) -> None:
        """Record that a try of the search was submitted."""
        self.awaited, self.moved = result, now

    def end_try(self, due: float = 0.0) -> None:
        """Record that a try of the search ended; the next one may be submitted at `due`."""
        self.awaited, self.due = None, due

    def supersede(self) -> None:
        """Mark the shard as committed by another attempt. This one stays until the task that it awaits ends."""
        self.phase = Phase.SUPERSEDED

    def release(self) -> None:
        """Drop the references to objects in the cluster. Its results stay, and no longer refer to it."""
        for result in (self.read, self.awaited, *self.summaries):
            if result is not None:
                result.owner = None
        self.ids = self.rows = None
        self.parts, self.outputs = [None] * len(self.parts), []

    def note_progress(self, now: float) -> bool:
        """Note what has been read and generated. Returns whether that is more than at the last call."""
        has_input, done = self.has_input or self.read.is_done, self.done
        while done < len(self.summaries) and self.summaries[done].is_done:
            if self.summaries[done].error is None:
                self.parts[done] = None
            done += 1
        has_moved = has_input > self.has_input or done > self.done
        self.has_input, self.done = has_input, done
        if has_moved:
            self.moved, self.generated = now, self.samples * done / len(self.parts)
        return has_moved


@dataclass(eq=False)
class Queue:
    """The attempts of one worker, in the order in which it generates them."""

    worker: Worker | None  # None for attempts that are only finished, because their worker is gone
    attempts: list[Attempt] = field(default_factory=list)
    moved: float = 0.0  # when the worker last got work or finished a part

    def mark_begun(self, now: float) -> bool:
        """Start the clock of each attempt whose turn has come; returns whether nothing is left to generate."""
        for attempt in self.attempts:
            if attempt.began is None:
                attempt.began = now
            if not attempt.is_generated:
                return False
        return True
