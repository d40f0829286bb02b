"""Read the commits of a plan some at a time, and check each against its planned shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import JointDiTError
from pipelines.dataset.validation.named import Named
from pipelines.dataset.validation.parts import Part, ids_of, part_of, planned_again
from pipelines.dataset.validation.recount import Recount
from pipelines.dataset.validation.scope import CountedVersions, Scope, Tables, entries_in
from pipelines.dataset.validation.waiting import Waiting
from pipelines.ledger.entries import OUTCOMES, Commit, PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.records import Span
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.shelf import Shelf

Rivals = dict[tuple[str, str], list[tuple[PlannedShard, Span]]]  # (uri, etag) -> shards that plan it, and their rows


class Account:
    """The commits of all planned shards."""

    def __init__(
        self,
        ledger: Ledger,
        tables: Tables,
        named: Named,
        scope: Scope | None = None,
        recount: Recount | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        """Take the plan, and what to do with the samples of the latest version.

        Args:
            scope: of the latest version; None if there is none.
            recount: finds which of its samples count.
            waiting: finds the rows that wait for more samples.
        """
        self.ledger, self.tables, self.named = ledger, tables, named
        self.scope, self.recount, self.waiting = scope, recount, waiting
        self._uncommitted: list[PlannedShard] = []  # that the latest version covers, with a row that counts

    def read(self, parts: Shelf[Part]) -> Iterator[str]:
        """Read and check all commits. What those of the latest version's shards say is added to `parts`."""
        committed = self.ledger.committed()
        names = pa.array(sorted(committed), pa.string())
        for shard in names.filter(pc.invert(pc.is_in(names, ids_of(self.tables).combine_chunks()))).to_pylist():
            yield f"_commits/{shard}.json commits a shard that no plan holds."
        again = planned_again(self.ledger, self.tables)
        if self.scope is not None:
            self._again = planned_again(self.ledger, self.scope.tables, self.scope.counted)
        for entries in entries_in(self.ledger, self.tables):
            problems: list[str] = []
            commits = read_commits(self.ledger, [e.shard.id for e in entries if e.shard.id in committed], problems)
            once = [entry for entry in entries if (entry.plan, entry.position) not in again]
            for entry in once:
                if entry.shard.id in commits:
                    problems += check_commit(entry, commits[entry.shard.id])
            self.named.add_commits({e.shard.id: commits[e.shard.id] for e in once if e.shard.id in commits})
            yield from problems
            if self.scope is not None and entries[0].plan in self.scope.tables:
                parts.add([self._look_at(self.scope, entries, commits)])

    def _look_at(self, scope: Scope, entries: Sequence[PlannedShard], commits: Mapping[str, Commit]) -> Part:
        """Return what the commits of some shards of the latest version say."""
        covered = [entry for entry in entries if scope.has(entry)]
        self._uncommitted += [e for e in covered if e.shard.id not in commits and scope.counted.has_any(e)]
        of_covered = {e.shard.id: commits[e.shard.id] for e in covered if e.shard.id in commits}
        once = [entry for entry in entries if (entry.plan, entry.position) not in self._again]
        part = part_of(once, of_covered, scope.counted)
        if self.recount is not None:
            self.recount.add(part.samples)
        if self.waiting is not None:
            self.waiting.add(entries, of_covered)
        return part

    def pending(self) -> list[PlannedShard]:
        """Return the shards without a commit that the latest version needs.

        A shard is not needed if its files were planned anew, or other shards that count for more make all its samples.
        """
        if self.scope is None or not self._uncommitted:
            return []
        scope, versions = self.scope, self.scope.counted
        wanted = {(span.uri, span.etag) for entry in self._uncommitted for span in entry.shard.spans}
        rivals: Rivals = {}
        for entries in entries_in(self.ledger, scope.tables):
            for entry in entries:
                for span in entry.shard.spans:
                    if (span.uri, span.etag) in wanted and scope.has(entry):
                        rivals.setdefault((span.uri, span.etag), []).append((entry, span))
        return [
            entry
            for entry in self._uncommitted
            if any(_makes_any(entry, span, rivals[span.uri, span.etag], versions) for span in entry.shard.spans)
        ]


def read_commits(ledger: Ledger, shards: Collection[str], problems: list[str]) -> dict[str, Commit]:
    """Return the commits of some shards. What is wrong with one that cannot be read is added to `problems`."""

    def read(shard: str) -> Commit | JointDiTError | None:
        try:
            return ledger.read_commit(shard)
        except JointDiTError as error:
            return error

    commits: dict[str, Commit] = {}
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for shard, found in zip(shards, pool.map(read, shards), strict=True):
            if isinstance(found, JointDiTError):
                problems.append(str(found))
            elif found is not None:
                commits[shard] = found
    return commits


def check_commit(entry: PlannedShard, commit: Commit) -> Iterator[str]:
    """Check that each planned sample of a shard ends exactly once, in an object with enough rows."""
    name = f"shard {entry.shard.id}"
    if commit.shard != entry.shard.id:
        yield f"_commits/{entry.shard.id}.json is the commit of shard {commit.shard}."
    expected = [
        (number, position, index)
        for number, span in enumerate(entry.shard.spans)
        for position in range(span.start, span.stop)
        for index in entry.indices
    ]
    made = [(sample.span, sample.position, sample.index) for sample in commit.samples]
    if made != expected:
        actual = Counter(made)
        lost, extra = len(set(expected) - actual.keys()), sum((actual - Counter(expected)).values())
        if lost:
            yield f"{name}: {lost} of {entry.samples} planned samples are lost."
        if extra:
            yield f"{name}: {extra} samples more than its {entry.samples} planned ones."
    rows = Counter[str]()
    for stored in commit.objects:
        if stored.kind == "table":
            rows[stored.outcome] += stored.rows
        if entry.shard.id not in stored.path:
            yield f"{name} names {stored.path}, which is of another shard."
    for outcome in OUTCOMES:
        if rows[outcome] != commit.counts[outcome]:
            yield f"{name}: {commit.counts[outcome]} samples are {outcome}, and its tables hold {rows[outcome]}."


def _makes_any(
    entry: PlannedShard, span: Span, rivals: Sequence[tuple[PlannedShard, Span]], versions: CountedVersions
) -> bool:
    """Return whether at least one sample of a span counts as made by this entry, of all that plan the same file."""
    rank = entry.retry, entry.plan, entry.position
    taken = {
        (theirs.start + place, index)
        for other, theirs in rivals
        if (other.retry, other.plan, other.position) > rank
        if theirs.start < span.stop and span.start < theirs.stop
        for place in np.flatnonzero(versions.rows_of(other, theirs)).tolist()
        for index in other.indices
    }
    positions = span.start + np.flatnonzero(versions.rows_of(entry, span))
    return any((position, index) not in taken for position in positions.tolist() for index in entry.indices)
