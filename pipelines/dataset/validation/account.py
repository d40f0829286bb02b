"""Read the commits of a plan some at a time, and check each against its planned shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import JointDiTError
from pipelines.dataset.validation.named import Named
from pipelines.dataset.validation.recount import SEEN, Recount
from pipelines.ledger.entries import OUTCOMES, Commit, PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.records import Span
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.shelf import Shelf

AT_ONCE = 512  # shards

Tables = Mapping[int, pa.Table]  # plan files by number
Rivals = dict[tuple[str, str], list[tuple[PlannedShard, Span]]]  # (uri, etag) -> shards that plan it, and their rows


@dataclass
class Part:
    """Some shards of one plan file, and what their commits say."""

    shards: list[str]
    samples: pa.Table  # SEEN
    tables: dict[str, list[str]] = field(default_factory=dict)  # shard -> paths of its tables of samples with pixels


class Account:
    """The commits of all planned shards."""

    def __init__(
        self, ledger: Ledger, tables: Tables, named: Named, plans: Sequence[int] = (), recount: Recount | None = None
    ) -> None:
        """plans: the plan files of the latest version, whose samples `recount` looks at."""
        self.ledger, self.tables, self.named, self.recount = ledger, tables, named, recount
        self.of_version = {number: table for number, table in tables.items() if number in plans}
        self._files = recount.files() if recount else {}
        self._uncommitted: list[PlannedShard] = []  # of the latest version's plan files, with a current file

    def read(self, parts: Shelf[Part]) -> Iterator[str]:
        """Read and check all commits. What those of the latest version's plan files say is added to `parts`."""
        committed = self.ledger.committed()
        names = pa.array(sorted(committed), pa.string())
        for shard in names.filter(pc.invert(pc.is_in(names, ids_of(self.tables).combine_chunks()))).to_pylist():
            yield f"_commits/{shard}.json commits a shard that no plan holds."
        again, again_of_version = planned_again(self.tables), planned_again(self.of_version)
        for entries in entries_in(self.ledger, self.tables):
            problems: list[str] = []
            commits = read_commits(self.ledger, [e.shard.id for e in entries if e.shard.id in committed], problems)
            once = [entry for entry in entries if (entry.plan, entry.position) not in again]
            for entry in once:
                if entry.shard.id in commits:
                    problems += check_commit(entry, commits[entry.shard.id])
            self.named.add_commits({e.shard.id: commits[e.shard.id] for e in once if e.shard.id in commits})
            yield from problems
            if entries[0].plan in self.of_version and self.recount is not None:
                once = [entry for entry in entries if (entry.plan, entry.position) not in again_of_version]
                part = part_of(once, commits, self._files)
                self.recount.add(part.samples)
                parts.add([part])
                self._uncommitted += [e for e in entries if e.shard.id not in commits and self._is_current(e)]

    def _is_current(self, entry: PlannedShard) -> bool:
        return any(self._files[span.uri][0] == span.etag for span in entry.shard.spans)

    def pending(self) -> list[PlannedShard]:
        """Return the shards without a commit that the latest version needs.

        A shard is not needed if its files were planned anew, or other shards that count for more make all its samples.
        """
        wanted = {(span.uri, span.etag) for entry in self._uncommitted for span in entry.shard.spans}
        rivals: Rivals = {}
        for entries in entries_in(self.ledger, self.of_version) if wanted else ():
            for entry in entries:
                for span in entry.shard.spans:
                    if (span.uri, span.etag) in wanted:
                        rivals.setdefault((span.uri, span.etag), []).append((entry, span))
        return [
            entry
            for entry in self._uncommitted
            if any(
                _makes_any(entry, span, rivals[span.uri, span.etag])
                for span in entry.shard.spans
                if self._files[span.uri][0] == span.etag
            )
        ]


def entries_in(ledger: Ledger, tables: Tables) -> Iterator[list[PlannedShard]]:
    """Yield the shards of plan files in order, some at a time."""
    for number, table in tables.items():
        for start in range(0, len(table), AT_ONCE):
            yield ledger.entries(number, range(start, min(start + AT_ONCE, len(table))))


def planned_again(tables: Tables) -> set[tuple[int, int]]:
    """Return the places of shards that are planned again later, as a file that was restored is: (plan, position)."""
    ids = ids_of(tables)
    counts = pc.value_counts(ids)
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    last: dict[str, tuple[int, int]] = {}
    earlier: set[tuple[int, int]] = set()
    for number, table in tables.items() if len(several) else ():
        for position in pc.indices_nonzero(pc.is_in(table["shard"], several)).to_pylist():
            shard = table["shard"][position].as_py()
            if shard in last:
                earlier.add(last[shard])
            last[shard] = number, position
    return earlier


def ids_of(tables: Tables) -> pa.ChunkedArray:
    """Return the ids of all shards of plan files (n)."""
    return pa.chunked_array([chunk for table in tables.values() for chunk in table["shard"].chunks], pa.string())


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


def part_of(
    entries: Sequence[PlannedShard], commits: Mapping[str, Commit], files: Mapping[str, tuple[str, int]]
) -> Part:
    """Return what the commits of some shards say about current files.

    Args:
        files: uri -> (etag as it was planned last, number of the file).
    """
    columns: dict[str, list[Any]] = {name: [] for name in SEEN.names}
    shards, tables = [], {}
    for entry in entries:
        shard = entry.shard.id
        shards.append(shard)
        if shard not in commits:
            continue
        commit, spans = commits[shard], entry.shard.spans
        numbers = [file if etag == span.etag else None for span in spans for etag, file in [files[span.uri]]]
        found = [(n, s) for n, s in enumerate(commit.samples) if s.span < len(spans) and numbers[s.span] is not None]
        rows = [sample.id.rpartition("/")[0] for _, sample in found]
        columns["plan"].append(np.full(len(found), entry.plan))
        columns["place"].append(np.full(len(found), entry.position))
        columns["retry"].append(np.full(len(found), entry.retry))
        columns["shard"].append([shard] * len(found))
        columns["number"].append([number for number, _ in found])
        columns["row"].append(rows)
        columns["id"].append([sample.id for _, sample in found])
        columns["made"].append([sample.outcome for _, sample in found])
        columns["made_reasons"].append([sample.reasons or None for _, sample in found])
        columns["file"].append([numbers[sample.span] for _, sample in found])
        columns["position"].append([sample.position for _, sample in found])
        columns["index"].append([sample.index for _, sample in found])
        columns["is_default"].append(
            [
                row == f"{spans[sample.span].relative_path}:{sample.position}"
                for row, (_, sample) in zip(rows, found, strict=True)
            ]
        )
        tables[shard] = [o.path for o in commit.objects if o.kind == "table" and o.outcome != "quarantined"]
    samples = {f.name: pa.array(list(chain.from_iterable(columns[f.name])), f.type) for f in SEEN}
    return Part(shards, pa.table(samples, schema=SEEN), tables)


def _makes_any(entry: PlannedShard, span: Span, rivals: Sequence[tuple[PlannedShard, Span]]) -> bool:
    """Return whether at least one sample of a span counts as made by this entry, of all that plan the same file."""
    rank = entry.retry, entry.plan, entry.position
    taken = {
        (position, index)
        for other, theirs in rivals
        if (other.retry, other.plan, other.position) > rank
        for position in range(max(theirs.start, span.start), min(theirs.stop, span.stop))
        for index in other.indices
    }
    return any((position, index) not in taken for position in range(span.start, span.stop) for index in entry.indices)
