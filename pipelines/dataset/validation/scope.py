"""What of a plan a version may hold, found from the plan and the shards that it covers, without the code that made it.

CountedVersions     which planned version of each file counts, and which rows it has
Scope               the shards that a version covers, the versions of files that count in it, and what it leaves out
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.ledger.carried import CarriedRows
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.records import Span

AT_ONCE = 512  # shards

Tables = Mapping[int, pa.Table]  # plan files by number
Runs = tuple[int, NDArray[np.int64], NDArray[np.int64]]  # plan file that planned them, first rows, and ends


class CountedVersions:
    """The planned version of each file that counts: the last one that is covered whole, else the last one."""

    def __init__(self, planned: Iterable[PlannedShard], covered: Collection[str] | None = None) -> None:
        """covered: the shards that a partial version covers; None: all."""
        is_whole: dict[tuple[str, str, int], bool] = {}  # in the order of the plan
        carried: list[tuple[int, CarriedRows]] = []
        self.numbers: dict[tuple[str, str], int] = {}  # (uri, etag) -> number, which only the plan determines
        self.again: set[str] = set()  # files of which several shards may make a sample
        for entry in planned:
            carried += ((entry.plan, rows) for rows in entry.carried)
            for span in entry.shard.spans:
                self.numbers.setdefault((span.uri, span.etag), len(self.numbers))
                if entry.is_first:
                    key = (span.uri, span.etag, entry.plan)
                    is_whole[key] = is_whole.get(key, True) and (covered is None or entry.shard.id in covered)
                else:
                    self.again.add(span.uri)
        last: dict[str, tuple[str, int]] = {}
        for uri, etag, plan in is_whole:
            if uri in last:
                self.again.add(uri)
            last[uri] = etag, plan
        self.plans = last | {uri: (etag, plan) for (uri, etag, plan), whole in is_whole.items() if whole}
        self.files = {uri: number for number, uri in enumerate(sorted(self.plans))}
        self._carried: dict[tuple[str, str], list[Runs]] = {}  # (uri, etag) -> carried rows that were planned for it
        for plan, rows in carried:
            if self.plans[rows.uri] == (rows.etag, plan):
                for number, origin in enumerate(rows.origins):
                    start = rows.start[rows.origin == number]
                    runs = (origin.plan, start, start + rows.rows[rows.origin == number])
                    self._carried.setdefault((rows.uri, origin.etag), []).append(runs)

    def rows_of(self, entry: PlannedShard, span: Span) -> NDArray[np.bool_]:
        """Return which rows (n) of a span of an entry are in the version of its file that counts."""
        etag, plan = self.plans.get(span.uri, ("", 0))
        if span.etag == etag and (not entry.is_first or entry.plan == plan):
            return np.ones(span.rows, bool)
        mask = np.zeros(span.rows, bool)
        for planner, starts, stops in self._carried.get((span.uri, span.etag), ()):
            if not entry.is_first or planner == entry.plan:
                hit = (starts < span.stop) & (stops > span.start)
                for start, stop in zip(starts[hit].tolist(), stops[hit].tolist(), strict=True):
                    mask[max(start - span.start, 0) : stop - span.start] = True
        return mask

    def has_any(self, entry: PlannedShard) -> bool:
        """Return whether a shard has a row of a version that counts, or is of such a version without rows."""
        return any(
            self.rows_of(entry, span).any() or self.plans.get(span.uri) == (span.etag, entry.plan)
            for span in entry.shard.spans
        )


@dataclass(frozen=True)
class Scope:
    """What of a plan one version is about."""

    ledger: Ledger
    tables: Tables  # its plan files
    covered: frozenset[str] | None  # the shards that a partial version covers; None: all
    counted: CountedVersions
    as_planned: CountedVersions  # those that a whole version of the same plan files has

    @classmethod
    def of(cls, ledger: Ledger, tables: Tables, covered: frozenset[str] | None) -> Scope:
        """Find the versions of files that count."""
        whole = CountedVersions(chain.from_iterable(entries_in(ledger, tables)))
        counted = whole
        if covered is not None:
            counted = CountedVersions(chain.from_iterable(entries_in(ledger, tables)), covered)
        return cls(ledger, tables, covered, counted, whole)

    def has(self, entry: PlannedShard) -> bool:
        """Return whether the version covers a shard, or a whole version would."""
        return self.covered is None or entry.shard.id in self.covered

    def left_out(self) -> int:
        """Count the samples of a whole version that no covered shard has, or that the version of a file lacks."""
        total = 0
        for entries in entries_in(self.ledger, self.tables) if self.covered is not None else ():
            for entry in entries:
                for span in entry.shard.spans:
                    lacks = self.as_planned.rows_of(entry, span)
                    if self.has(entry):
                        lacks &= ~self.counted.rows_of(entry, span)
                    total += int(np.count_nonzero(lacks)) * entry.samples_per_row
        return total


def entries_in(ledger: Ledger, tables: Tables) -> Iterator[list[PlannedShard]]:
    """Yield the shards of plan files in order, some at a time."""
    for number, table in tables.items():
        for start in range(0, len(table), AT_ONCE):
            yield ledger.entries(number, range(start, min(start + AT_ONCE, len(table))))
