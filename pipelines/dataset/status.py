"""The progress of a job, from its ledger alone: without Ray, input or pixels."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.ledger.before import Before
from pipelines.ledger.changes import Changes
from pipelines.ledger.counted import Uncovered, counted_shards
from pipelines.ledger.counting import Counting
from pipelines.ledger.entries import OUTCOMES, Commit, PlannedShard
from pipelines.ledger.lease import STALE_SECONDS, Lease, State, Watch
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.plan_tables import CountingRows, current_rows
from pipelines.ledger.reports import RunReport, cost_so_far, read_report, report_names
from pipelines.ledger.resume import LISTED_AT_ONCE, which_exist
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
    is_published: bool  # whether the latest version is whole and covers all plans
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
        self._found: set[str] = set()  # shards of no segment that have a commit
        self._uncommitted: set[str] = set()  # planned shards that had no commit at the last look
        self._covered: tuple[object, Counts] = None, Counter()  # for (segments, shards that are left out)
        self._reports: dict[str, RunReport | None] = {}  # of finished runs
        self._history: deque[tuple[float, int]] = deque()  # (time, samples committed)

    def read(self) -> Status:
        """Return the current state."""
        latest = read_latest(self.storage)
        work = Uncovered.since(self.ledger, latest, is_partial=True, read=self._read_commits)
        before, changes = work.before, work.changes
        tables = {number: self.ledger.plan_tables()[number] for number in changes.plans}  # the plan may have grown
        planned = {number: current_rows(number, table, changes.versions) for number, table in tables.items()}
        committed = self._committed(before, changes)
        counts = self._count(work, planned, committed)
        pending: Counter[int] = Counter()  # round -> samples
        shards = done = 0
        for number, table in tables.items():
            left = planned[number].is_current & ~committed[number]
            shards += int(planned[number].is_current.sum())
            done += int((planned[number].is_current & committed[number]).sum())
            samples = planned[number].rows * table["samples_per_row"].to_numpy() * left
            rounds_of = table["round"].to_numpy()[planned[number].is_current]
            for round_ in np.unique(rounds_of).tolist():
                pending[round_] += int(samples[table["round"].to_numpy() == round_].sum())
        rounds = tuple(_round(number, counts, pending[number]) for number in sorted(pending))
        current = {number for number, rows in planned.items() if rows.is_current.any()}
        self._history.append((self._clock(), counts.total()))
        reports = self._read_reports()
        return Status(
            output=self.storage.uri,
            name=str(self.job.spec["name"]),
            task=str(self.job.spec["task"]),
            created=self.job.created,
            plans=len(tables),
            shards=shards,
            committed_shards=done,
            samples=counts.total() + pending.total(),
            committed_samples=counts.total(),
            counts={outcome: sum(round_.counts[outcome] for round_ in rounds) for outcome in OUTCOMES},
            round=max((int(max(table["round"].to_numpy(), default=0)) for table in tables.values()), default=0),
            rounds=rounds,
            crashes=dict(sorted(self.ledger.crash_counts().items())),
            latest=latest,
            is_published=latest is not None and not latest.is_partial and current <= set(latest.plans),
            leases=tuple(self._watch.read()),
            runs=len(reports),
            gpu_hours=sum(report.gpu_hours for report in reports),
            cpu_hours=sum(report.cpu_hours for report in reports),
            costs=cost_so_far(reports),
        )

    def _committed(self, before: Before, changes: Changes) -> dict[int, NDArray[np.bool_]]:
        """Return which shards of each plan file have a commit: those of the latest version, and what is found."""
        tables = self.ledger.plan_tables()
        new = [(n, tables[n]["shard"].take(pa.array(places, pa.int64()))) for n, places in changes.new.items()]
        names = [name for _, shards in new for name in shards.to_pylist() if name not in self._found]
        if len(names) * LISTED_AT_ONCE <= len(before.covered):
            self._found |= which_exist(self.ledger, names)
        elif names:
            self._found |= self.ledger.committed()
        self._uncommitted = set(names) - self._found
        committed = {}
        for number, shards in new:
            mask = np.ones(len(tables[number]), bool)
            mask[changes.new[number]] = [name in self._found for name in shards.to_pylist()]
            committed[number] = mask
        return committed

    def _count(
        self, work: Uncovered, planned: Mapping[int, CountingRows], committed: Mapping[int, NDArray[np.bool_]]
    ) -> Counts:
        """Count the samples of committed shards that count: of the latest version, and of what it does not cover."""
        before, changes = work.before, work.changes
        if changes.may_share_rows:
            looked_at: set[str] = set()
            new: Counts = Counter()
            for shard in itertools.chain.from_iterable(counted_shards(work)):
                looked_at.add(shard.entry.shard.id)
                new.update((s.entry.shard.round, s.sample.outcome) for s in shard.samples if s.counts)
            return self._count_covered(before, looked_at) + new
        places = {
            number: [p for p in chosen if committed[number][p] and planned[number].is_current[p]]
            for number in changes.plans
            for chosen in [sorted({*changes.new.get(number, ()), *changes.affected.get(number, ())})]
        }
        entries = [e for number, chosen in places.items() if chosen for e in self.ledger.entries(number, chosen)]
        counting = Counting(entries, changes.versions, changes.retries)
        partial = {e.shard.id for e in entries if not counting.is_whole(e)}
        self._read_new({entry.shard.id for entry in entries}, partial)
        looked_at = {shard for n, chosen in changes.affected.items() for shard in self._ids(n, chosen)}
        return self._count_covered(before, looked_at) + self._count_new(counting, entries)

    def _read_commits(self, shards: Iterable[str]) -> dict[str, Commit]:
        """Return the commits of those shards that have one, each read once."""
        wanted = set(shards)
        covered_or_found = {shard for shard in wanted if shard in self._found or shard not in self._uncommitted}
        self._read_new(covered_or_found, covered_or_found)
        found = {shard: self._done[shard].commit for shard in covered_or_found}
        return {shard: commit for shard, commit in found.items() if commit is not None}

    def _ids(self, number: int, places: Sequence[int]) -> list[str]:
        ids: list[str] = self.ledger.plan_tables()[number]["shard"].take(pa.array(places, pa.int64())).to_pylist()
        return ids

    def _count_covered(self, before: Before, without: set[str]) -> Counts:
        """Count the samples of the latest version, by the outcome in their commits, without those of some shards."""
        counts: Counts = Counter()
        if before.latest is None or before.is_old:
            return counts
        chosen = pa.array(sorted(without), pa.string())
        key = tuple(segment.path for segment in before.latest.segments), frozenset(without)
        if self._covered[0] != key:
            for table in before.latest.content.samples(["round", "made", "shard"]):
                mine = table.filter(pc.invert(pc.is_in(table["shard"], chosen))) if without else table
                sums = mine.group_by(["round", "made"]).aggregate([([], "count_all")])
                for row in sums.to_pylist():
                    counts[row["round"], row["made"]] += row["count_all"]
            self._covered = key, counts
        return self._covered[1]

    def _count_new(self, counting: Counting, entries: Sequence[PlannedShard]) -> Counts:
        """Count the samples of committed shards that no segment covers."""
        commits = {entry.shard.id: self._done[entry.shard.id].commit for entry in entries}
        read = {shard: commit for shard, commit in commits.items() if commit is not None}
        counts: Counts = Counter()
        for entry in entries:
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
