"""The progress of a job, from its ledger alone: without Ray, input or pixels."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.ledger.counting import Counting
from pipelines.ledger.entries import OUTCOMES, Commit, PlannedShard
from pipelines.ledger.lease import STALE_SECONDS, Lease, State, Watch
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.reports import RunReport, cost_so_far, read_report, report_names
from pipelines.ledger.versions import Version, read_latest
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.storage import Storage

RATE_SECONDS = 600.0  # the rate is measured over the last ten minutes


@dataclass(frozen=True)
class RoundStatus:
    """A round of regeneration. Round 0 has the samples of the input; each later round has new seeds for rejects."""

    number: int
    samples: int  # samples that count, made or not
    counts: dict[str, int]  # outcome -> samples that are made


@dataclass(frozen=True)
class Status:
    """The state of a job."""

    output: str
    name: str
    task: str
    created: str
    plans: int
    shards: int  # shards that count, without those that newer input supersedes
    committed_shards: int
    samples: int  # samples that count, each once even if it is made again
    committed_samples: int
    counts: dict[str, int]  # committed samples by the outcome in their commit; the version's may differ (decisions.py)
    round: int  # the last one planned
    rounds: tuple[RoundStatus, ...]
    crashes: dict[str, int]  # shard -> how often it crashed a process
    latest: Version | None
    is_published: bool  # whether the latest version covers all plans
    leases: tuple[tuple[Lease, State], ...]  # of drivers that run, or were killed
    runs: int  # finished runs with a report (run/report.py)
    gpu_hours: float  # of these runs
    cpu_hours: float
    costs: dict[str, float]  # currency -> cost

    @property
    def is_complete(self) -> bool:
        """Whether every planned shard is committed and published."""
        return self.committed_shards == self.shards and self.is_published

    def summary(self) -> dict[str, Any]:
        """Return the fields ready for JSON. The latest version is given by its number."""
        leases = [{**asdict(lease), "state": state} for lease, state in self.leases]
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        latest = self.latest.number if self.latest else None
        rounds = [asdict(round_) for round_ in self.rounds]
        return {**fields, "latest": latest, "rounds": rounds, "leases": leases, "is_complete": self.is_complete}


Counts = Counter[tuple[int, str]]  # (round, outcome) -> samples


@dataclass(frozen=True)
class _Done:
    """What is kept of a commit: its counts, and the commit itself only where some samples may not count."""

    counts: dict[str, int]
    commit: Commit | None = None


class StatusReader:
    """Reads the state of a job repeatedly. Immutable objects are read once."""

    def __init__(
        self, uri: str, stale_seconds: float = STALE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises StoreError where there is no job."""
        self.storage = Storage(uri)
        self.ledger = Ledger(self.storage)
        self.job = self.ledger.read_job()
        self._watch = Watch(self.storage, stale_seconds=stale_seconds, clock=clock)
        self._clock = clock
        self._done: dict[str, _Done] = {}
        self._counted: tuple[tuple[int, int], Counts] = (0, 0), Counter()  # for (planned, committed) shards
        self._reports: dict[str, RunReport | None] = {}  # of finished runs
        self._history: deque[tuple[float, int]] = deque()  # (time, samples committed)

    def read(self) -> Status:
        """Return the current state."""
        planned = self.ledger.planned()
        counting = Counting(planned)
        entries = [entry for entry in planned if not counting.is_superseded(entry)]
        committed = self.ledger.committed()
        done = [entry for entry in entries if entry.shard.id in committed]
        partial = {e.shard.id for e in done if counting.may_share_rows or not counting.is_whole(e)}
        self._read_new({entry.shard.id for entry in done}, partial)
        state = (len(planned), len(done))  # plans never change and commits are never deleted
        if state != self._counted[0]:
            self._counted = state, self._count(counting, done)
        counts = self._counted[1]
        pending: Counter[int] = Counter()  # round -> samples
        for entry in entries:
            pending[entry.shard.round] += 0 if entry.shard.id in committed else counting.current_samples(entry)
        rounds = tuple(_round(number, counts, pending[number]) for number in sorted(pending))
        self._history.append((self._clock(), counts.total()))
        latest = read_latest(self.storage)
        reports = self._read_reports()
        return Status(
            output=self.storage.uri,
            name=str(self.job.spec["name"]),
            task=str(self.job.spec["task"]),
            created=self.job.created,
            plans=len({entry.plan for entry in planned}),
            shards=len(entries),
            committed_shards=len(done),
            samples=counts.total() + pending.total(),
            committed_samples=counts.total(),
            counts={outcome: sum(round_.counts[outcome] for round_ in rounds) for outcome in OUTCOMES},
            round=max((entry.shard.round for entry in planned), default=0),
            rounds=rounds,
            crashes=dict(sorted(self.ledger.crash_counts().items())),
            latest=latest,
            is_published=latest is not None and {entry.plan for entry in entries} <= set(latest.plans),
            leases=tuple(self._watch.read()),
            runs=len(reports),
            gpu_hours=sum(report.gpu_hours for report in reports),
            cpu_hours=sum(report.cpu_hours for report in reports),
            costs=cost_so_far(reports),
        )

    def _count(self, counting: Counting, done: Sequence[PlannedShard]) -> Counts:
        """Count the samples of committed shards that count."""
        commits = {entry.shard.id: self._done[entry.shard.id].commit for entry in done}
        read = {shard: commit for shard, commit in commits.items() if commit is not None}
        if counting.may_share_rows:
            counted = counting.counted(read, unfinished=True)
            return Counter((sample.entry.shard.round, sample.sample.outcome) for sample in counted)
        counts: Counts = Counter()
        for entry in done:
            commit, number = read.get(entry.shard.id), entry.shard.round
            if commit is None:
                counts.update({(number, name): count for name, count in self._done[entry.shard.id].counts.items()})
            else:
                counts.update((number, s.outcome) for s in commit.samples if counting.makes(entry, s))
        return counts

    def _read_reports(self) -> list[RunReport]:
        for name in report_names(self.storage):
            if name not in self._reports:
                self._reports[name] = read_report(self.storage, name)
        return [report for report in self._reports.values() if report is not None]

    def rate(self) -> float | None:
        """Return samples per second over the last minutes, or None after the first read."""
        while len(self._history) > 2 and self._history[-1][0] - self._history[0][0] > RATE_SECONDS:
            self._history.popleft()
        (start, before), (end, after) = self._history[0], self._history[-1]
        return max(0, after - before) / (end - start) if end > start else None

    def _read_new(self, shards: set[str], partial: set[str]) -> None:
        known = {shard for shard, done in self._done.items() if done.commit is not None or shard not in partial}
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            for commit in pool.map(self.ledger.read_commit, shards - known):
                assert commit is not None, "commits are never deleted"
                self._done[commit.shard] = _Done(commit.counts, commit if commit.shard in partial else None)


def _round(number: int, counts: Counts, pending: int) -> RoundStatus:
    made: dict[str, int] = {outcome: counts[number, outcome] for outcome in OUTCOMES}
    return RoundStatus(number, sum(made.values()) + pending, made)


def read_status(uri: str) -> Status:
    """Return the state of the job at an output address. Raises StoreError where there is none."""
    return StatusReader(uri).read()
