"""Recount what a partial version may hold, from the plan and the shards that it covers, without the code that made it.

CountedVersions     which planned version of each file counts, and which rows it has
left_out            how many samples of a whole version it lacks, without those that are withheld
open_rows           rows that wait for more samples, of which keep_best lets it decide nothing new
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from pipelines.ledger.entries import PlannedShard, SampleOutcome
from pipelines.plan.regeneration import is_worth_a_seed
from pipelines.records import RowKey, Span
from pipelines.spec.job import JobSpec

Versions = dict[str, tuple[str, int]]  # uri -> (etag, plan)


class CountedVersions:
    """The planned version of each file that counts: the last one that is covered whole, else the last one."""

    def __init__(self, planned: Sequence[PlannedShard], covered: Collection[str] | None = None) -> None:
        """covered: the shards that a partial version covers; None: all."""
        is_whole: dict[tuple[str, str, int], bool] = {}  # in the order of the plan
        for entry in planned:
            for span in entry.shard.spans if entry.is_first else ():
                key = (span.uri, span.etag, entry.plan)
                is_whole[key] = is_whole.get(key, True) and (covered is None or entry.shard.id in covered)
        last = {uri: (etag, plan) for uri, etag, plan in is_whole}
        self.plans: Versions = last | {uri: (etag, plan) for (uri, etag, plan), whole in is_whole.items() if whole}
        self._carried: dict[RowKey, int] = {}  # carried rows -> the plan file that planned them
        for entry in planned:
            for rows in entry.carried:
                if self.plans[rows.uri] == (rows.etag, entry.plan):
                    for number, start, count in zip(rows.origin, rows.start, rows.rows, strict=True):
                        etag, plan, _ = rows.origins[number]
                        self._carried.update({(rows.uri, etag, n): plan for n in range(start, start + count)})

    def have(self, entry: PlannedShard, span: Span, position: int) -> bool:
        """Return whether the version of a file that counts has a row of a span of an entry."""
        etag, plan = self.plans.get(span.uri, ("", 0))
        planner = self._carried.get((span.uri, span.etag, position), plan if span.etag == etag else None)
        return planner is not None and (not entry.is_first or entry.plan == planner)


def left_out(planned: Sequence[PlannedShard], covered: Collection[str]) -> int:
    """Count the samples of a whole version that no covered shard has, or that the earlier version of a file lacks."""
    whole, partial = CountedVersions(planned), CountedVersions(planned, covered)
    return sum(
        entry.samples_per_row
        for entry in planned
        for span in entry.shard.spans
        for position in range(span.start, span.stop)
        if whole.have(entry, span, position) and not (entry.shard.id in covered and partial.have(entry, span, position))
    )


def open_rows(
    spec: JobSpec,
    planned: Sequence[PlannedShard],
    covered: Collection[str],
    counted: Iterable[tuple[PlannedShard, SampleOutcome]],
) -> set[RowKey]:
    """Return the rows with a retry or a round that is not covered, or not planned yet.

    Args:
        counted: the covered samples that count where all that is planned does.
    """
    absent = (entry for entry in planned if not entry.is_first and entry.shard.id not in covered)
    rows = {key for entry in absent for key in _rows_of(entry)}
    if not spec.quality.regenerate:
        return rows
    has: Counter[tuple[RowKey, int]] = Counter()  # samples of each row in each round
    for entry in planned:
        if entry.shard.round and not entry.retry:
            has.update({(key, entry.shard.round): len(entry.indices) for key in _rows_of(entry)})
    needs: dict[tuple[RowKey, int], int] = defaultdict(int)
    for entry, sample in counted:
        is_rejected = sample.outcome == "rejected" and is_worth_a_seed(sample.reasons, spec.task)
        if is_rejected and entry.shard.round < spec.quality.regenerate:
            span = entry.shard.spans[sample.span]
            needs[(span.uri, span.etag, sample.position), entry.shard.round + 1] += 1
    return rows | {row for (row, round_), count in needs.items() if count > has[row, round_]}


def _rows_of(entry: PlannedShard) -> Iterator[RowKey]:
    for span in entry.shard.spans:
        yield from ((span.uri, span.etag, position) for position in range(span.start, span.stop))
