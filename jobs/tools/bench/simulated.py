"""A cluster without processes, on a virtual clock: the executor of the engine for benches and tests of the dispatcher.

A task begins when its input is there, a call of an actor when the call before it has ended too. Each lasts a drawn
time. Reads and calls return what the driver sees of them; `finish` commits to the real ledger. Workers are lost and
added at given times. Time passes only in `wait`, so a run takes the CPU time of the driver and of this simulation;
`seconds` is the latter.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from ray.exceptions import ActorDiedError, TaskCancelledError

from pipelines.engine.chains import ReadSummary
from pipelines.engine.cluster import ClusterState, WorkerPlan
from pipelines.engine.executor import Result, Task
from pipelines.engine.metrics import Values
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome, new_token
from pipelines.ledger.ledger import Ledger
from pipelines.stages.context import RunContext
from pipelines.stages.finish import Receipt
from pipelines.stages.generate import PartSummary
from pipelines.stages.read import Isolation
from pipelines.store.storage import ObjectInfo, Storage

P = ParamSpec("P")
R = TypeVar("R")
PAGE = 1000  # names in a page of an S3 listing
COMMITTED_OUTCOMES = 8  # sample outcomes in a commit of the simulation, so that commits are short


class CountingStorage(Storage):
    """A local folder that counts requests by kind and folder, and may hold synthetic commits without files.

    Requests of tasks are counted apart from those of the driver. A listing counts as its pages on S3.
    """

    def __init__(self, uri: str, committed: Callable[[], Iterator[str]] = lambda: iter(())) -> None:
        """`committed`: the ids of shards whose commits exist only in listings."""
        super().__init__(uri)
        self.requests: Counter[tuple[str, str]] = Counter()  # (kind, folder), of the driver
        self.task_requests: Counter[tuple[str, str]] = Counter()
        self._committed = committed
        self._in_task = False

    @contextmanager
    def in_task(self) -> Iterator[None]:
        """Count the requests of the block as those of a task."""
        self._in_task = True
        try:
            yield
        finally:
            self._in_task = False

    def _count(self, kind: str, name: str, number: int = 1) -> None:
        counts = self.task_requests if self._in_task else self.requests
        counts[kind, name.partition("/")[0]] += number

    def read_bytes(self, name: str) -> bytes:
        """Read an object."""
        self._count("read", name)
        return super().read_bytes(name)

    def info(self, name: str) -> ObjectInfo:
        """Return size and version of an object."""
        self._count("look", name)
        return super().info(name)

    def names(self, folder: str, suffix: str = "", everything: bool = False) -> list[str]:
        """Return the names in a folder, synthetic commits included."""
        names = super().names(folder, suffix, everything)
        if folder == "_commits":
            names += [f"{shard}.json" for shard in self._committed()]
        self._count("list", folder, max(1, -(-len(names) // PAGE)))
        return names

    def create_bytes(self, name: str, data: bytes) -> None:
        """Create an object."""
        self._count("create", name)
        super().create_bytes(name, data)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write an object."""
        self._count("write", name)
        super().write_bytes(name, data)


@dataclass(frozen=True)
class World:
    """What happens in a simulated cluster. Times are in seconds of its clock."""

    workers: int  # at the start
    read_seconds: float = 2.0
    part_seconds: float = 3.0
    finish_seconds: float = 4.0
    load_seconds: float = 30.0
    spread: float = 0.3  # each of these times varies by this fraction
    changes: Sequence[tuple[float, int]] = ()  # (time, workers that are added, or lost if it is negative)
    rivals: float = 0.0  # the fraction of shards that another driver commits while they are generated
    read_bytes: int = 10**6  # per sample
    store_bytes: float = 1e15
    seed: int = 7


@dataclass(eq=False, slots=True)
class Reference:
    """An object in the cluster."""

    ready: float  # when it will be there
    actor: Actor | None = None  # that makes it
    make: Callable[[], Any] | None = None  # makes its value when it is there; None: `value` is given
    users: list[Reference] = field(default_factory=list)  # made of it
    value: Any = None
    error: BaseException | None = None
    is_done: bool = False
    result: Result | None = None  # by which the driver watches it


@dataclass(eq=False, slots=True)
class Actor:
    """A worker."""

    node: str
    free: float  # when its last call ends
    open: dict[Reference, list[Reference]] = field(default_factory=dict)  # calls that have not ended, by last result
    is_alive: bool = True


def _outside(method: Callable[P, R]) -> Callable[P, R]:
    """Count the CPU time of a method as the simulation's."""

    @functools.wraps(method)
    def timed(*arguments: P.args, **settings: P.kwargs) -> R:
        cluster: Any = arguments[0]
        started = time.thread_time()
        try:
            return method(*arguments, **settings)
        finally:
            cluster.seconds += time.thread_time() - started

    return timed


class SimulatedCluster:
    """The executor of a simulated cluster."""

    def __init__(self, storage: CountingStorage, world: World) -> None:
        self.storage, self.world = storage, world
        self.seconds = 0.0  # of CPU time
        self.room = world.workers
        self.actors: list[Actor] = []
        self.waits = self.lost = 0  # calls of `wait`; workers that were lost
        self.began = 0.0, Counter[tuple[str, str]]()  # CPU seconds and the driver's requests before the first `wait`
        self.most_in_flight = 0  # the largest number of shards whose read has begun and whose finish has not ended
        self._in_flight: set[str] = set()
        self._now = 0.0
        self._draw = random.Random(world.seed)
        self._changes = sorted(world.changes)
        self._order = itertools.count()
        self._events: list[tuple[float, int, Reference]] = []  # a heap
        self._results: list[Result] = []
        self._ledger = Ledger(storage)

    def now(self) -> float:
        """Return the virtual time."""
        return self._now

    def put(self, value: Any) -> Any:
        """Return the value in place of a reference."""
        return value

    @_outside
    def submit(self, task: Task, returns: int, *arguments: Any) -> list[Any]:
        """Submit a read or a finish."""
        context, entry = arguments[:2]
        if task.name == "read":
            return self._submit_read(context, entry, arguments[2], returns)
        assert task.name == "finish", "no process of this cluster dies for a row"
        inputs = [argument for argument in arguments if isinstance(argument, Reference)]
        begin = max(self._now, *(reference.ready for reference in inputs))
        receipt = Reference(begin + self._take(self.world.finish_seconds))
        receipt.make = functools.partial(self._finish, entry, arguments[3])
        for reference in inputs:
            reference.users.append(receipt)
            if reference.error is not None:
                self._schedule(receipt, self._now)
                receipt.error = reference.error
        return [receipt]

    def _submit_read(self, context: RunContext, entry: PlannedShard, isolation: Isolation, returns: int) -> list[Any]:
        ready = self._now + self._take(self.world.read_seconds)
        size = context.spec.model.batch_size
        parts = isolation.parts(entry.samples, size)
        counts = [min(size, entry.samples - size * number) for number in range(parts)]
        summary = Reference(ready, make=lambda: ReadSummary(1.0, self.world.read_bytes * entry.samples))
        ids = Reference(ready, make=lambda: [[f"{entry.shard.id}/{n}"] * count for n, count in enumerate(counts)])
        made = [Reference(ready, value=count) for count in counts]
        references = [summary, ids, Reference(ready), *made]
        assert len(references) == returns
        self._in_flight.add(entry.shard.id)
        self.most_in_flight = max(self.most_in_flight, len(self._in_flight))
        return references

    @_outside
    def start(self, plan: WorkerPlan, worker_class: type, *arguments: Any) -> Actor:
        """Start a worker."""
        actor = Actor(f"node-{len(self.actors) // 8}", self._now)
        self.actors.append(actor)
        return actor

    @_outside
    def call(self, actor: Actor, method: str, returns: int, *arguments: Any) -> list[Any]:
        """Call a worker."""
        value: str | PartSummary | None
        seconds = {"node": 0.1, "set_up": self._take(self.world.load_seconds), "destroy": 0.0}
        begin, value = max(self._now, actor.free), {"node": actor.node}.get(method)
        if method == "generate":
            (part,) = arguments
            begin, samples = max(begin, part.ready), part.value
            seconds["generate"] = self._take(self.world.part_seconds)
            value = PartSummary(samples, seconds["generate"], samples, {}, "float32", 10 * samples)
        actor.free = begin + seconds[method]
        references = [Reference(actor.free, actor) for _ in range(returns)]
        references[-1].value = value
        actor.open[references[-1]] = references
        if not actor.is_alive:
            self._fail_calls(actor)
        return references

    @_outside
    def watch(self, reference: Reference, owner: Any, wakes: bool = True) -> Result:
        """Return the result of a reference."""
        reference.result = Result(reference, owner, wakes)
        if reference.error is not None or reference.ready <= self._now:
            self._schedule(reference, self._now)
        else:
            self._schedule(reference, reference.ready)
        return reference.result

    @_outside
    def wait(self, seconds: float) -> list[Result]:
        """Let the time pass until a result that wakes is there."""
        if not self.waits:
            self.began = time.process_time() - self.seconds, self.storage.requests.copy()
        self.waits += 1
        until = self._now + seconds
        while self._events and self._events[0][0] <= until:
            self._now, _, reference = heapq.heappop(self._events)
            if self._settle(reference):
                break
        else:
            self._now = until
        results, self._results = self._results, []
        return results

    @_outside
    def get(self, reference: Reference) -> Any:
        """Return the value of a reference."""
        if reference.error is not None:
            raise reference.error
        return reference.make() if reference.make is not None else reference.value

    @_outside
    def cancel(self, result: Result) -> None:
        """Cancel a task."""
        self._fail(result.reference, TaskCancelledError())

    @_outside
    def kill(self, actor: Actor) -> None:
        """End a worker."""
        actor.is_alive = False
        self._fail_calls(actor)

    @_outside
    def cluster_state(self, plan: WorkerPlan) -> ClusterState:
        """Return the state of the cluster, after the changes that are due."""
        while self._changes and self._changes[0][0] <= self._now:
            _, number = self._changes.pop(0)
            self.room += number
            alive = [actor for actor in self.actors if actor.is_alive]
            for actor in self._draw.sample(alive, min(len(alive), max(0, -number))):
                self.lost += 1
                self.kill(actor)
        return ClusterState(self.room, frozenset(), self.world.store_bytes)

    def exporter(self, dataset: str) -> SimulatedCluster:
        """Return an exporter that drops the totals."""
        return self

    def export(self, values: Values) -> None:
        """Drop the totals."""

    def _take(self, seconds: float) -> float:
        return seconds * (1 + self.world.spread * self._draw.uniform(-1, 1))

    def _schedule(self, reference: Reference, when: float) -> None:
        heapq.heappush(self._events, (when, next(self._order), reference))

    def _settle(self, reference: Reference) -> bool:
        """Set the result of a reference whose time has come. Returns whether that wakes the driver."""
        if reference.is_done:
            return False
        if reference.actor is not None:
            reference.actor.open.pop(reference, None)
        reference.is_done = True
        if reference.error is None and reference.make is not None:
            reference.value = reference.make()
        if reference.result is None:
            return False
        reference.result.set(reference.value, reference.error)
        self._results.append(reference.result)
        return reference.result.wakes

    def _fail_calls(self, actor: Actor) -> None:
        error = ActorDiedError()
        error.error_msg = "The actor died because its node has died."
        for reference in [reference for references in actor.open.values() for reference in references]:
            self._fail(reference, error)
        actor.open.clear()

    def _fail(self, reference: Reference, error: BaseException) -> None:
        if reference.is_done or reference.error is not None:
            return
        reference.error = error
        self._schedule(reference, self._now)
        for user in reference.users:
            self._fail(user, error)

    def _finish(self, entry: PlannedShard, run: str) -> Receipt:
        """Commit a shard to the ledger, unless another driver is faster."""
        self._in_flight.discard(entry.shard.id)
        span = entry.shard.spans[0]
        outcomes = tuple(
            SampleOutcome(f"{span.relative_path}:{position}/0", 0, position, 0, "kept")
            for position in range(span.start, min(span.stop, span.start + COMMITTED_OUTCOMES))
        )
        token = run + new_token()[len(run) :]
        with self.storage.in_task():
            if self._draw.random() < self.world.rivals:
                self._ledger.commit(Commit(entry.shard.id, new_token(), (), outcomes, "another driver"))
            winner = self._ledger.commit(Commit(entry.shard.id, token, (), outcomes, "simulated"))
        return Receipt(entry.shard.id, winner.token, winner.token == token, winner.counts, {}, 0, seconds=4.0)
