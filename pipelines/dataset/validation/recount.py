"""Count which planned samples a version must hold, independently of ledger/counting.py.

counting.py iterates over shards and decides for each sample whether it counts. This file iterates over the samples that
were planned for the current files, and finds the attempt that made each one and the file that its row belongs to. There
is one reason to leave a sample out: a file that was planned later holds a row with its id, and that row counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.dataset.validation.partial import CountedVersions
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome
from pipelines.records import RowKey


@dataclass
class _PlannedRow:
    """A row of a current file, with all that the plan and the commits say about it."""

    place: tuple[int, int, int]  # plan of its file's version, and its shard's place; the last row with an id counts
    default_id: str
    makers: dict[int, PlannedShard] = field(default_factory=dict)  # sample index -> the shard whose result counts
    ids: set[str] = field(default_factory=set)  # ids that its attempts recorded

    @property
    def id(self) -> str:
        """The id that an attempt could read, else the default id."""
        return min(self.ids - {self.default_id}, default=self.default_id)


@dataclass(frozen=True)
class CountedSample:
    """A committed sample that counts, with the shard that made it."""

    entry: PlannedShard
    sample: SampleOutcome

    @property
    def row(self) -> RowKey:
        """What identifies its row."""
        span = self.entry.shard.spans[self.sample.span]
        return span.uri, span.etag, self.sample.position


@dataclass(frozen=True)
class Recount:
    """What a version of the whole plan must hold."""

    samples: list[CountedSample]  # in (plan, position) order
    pending: list[PlannedShard]  # shards without a commit that such a version needs


def recount(
    planned: Sequence[PlannedShard], commits: Mapping[str, Commit], covered: Collection[str] | None = None
) -> Recount:
    """Account for every planned sample of the files as they were planned last.

    Args:
        planned: shards in (plan, position) order.
        covered: the shards that a partial version covers; None: all.
    """
    versions = CountedVersions(planned, covered)
    planned = [entry for entry in planned if covered is None or entry.shard.id in covered]
    rows = _planned_rows(planned, versions)
    makers = {id(maker): maker for row in rows.values() for maker in row.makers.values()}
    pending = [entry for entry in planned if id(entry) in makers and entry.shard.id not in commits]
    made: list[tuple[PlannedShard, SampleOutcome, _PlannedRow]] = []
    for entry in planned:
        for sample in commits[entry.shard.id].samples if entry.shard.id in commits else ():
            span = entry.shard.spans[sample.span]
            row = rows.get((span.uri, span.etag, sample.position))
            if row is not None:
                row.ids.add(sample.id.rpartition("/")[0])
                if row.makers.get(sample.index) is entry:
                    made.append((entry, sample, row))
    last: dict[str, tuple[tuple[int, int, int], str]] = {}  # row id -> (place, uri) of its row that was planned last
    for (uri, _, _), row in rows.items():
        if row.ids:
            last[row.id] = max((row.place, uri), last.get(row.id, (row.place, uri)))
    counted = [CountedSample(e, sample) for e, sample, row in made if last[row.id][1] == e.shard.spans[sample.span].uri]
    return Recount(counted, pending)


def _planned_rows(planned: Sequence[PlannedShard], versions: CountedVersions) -> dict[RowKey, _PlannedRow]:
    """Return the rows of the file versions that count, with the last shard that makes each of their samples."""
    rows: dict[RowKey, _PlannedRow] = {}
    for entry in planned:
        for span in entry.shard.spans:
            for position in range(span.start, span.stop):
                if not versions.have(entry, span, position):
                    continue
                key = (span.uri, span.etag, position)
                row = rows.setdefault(key, _PlannedRow((0, 0, 0), f"{span.relative_path}:{position}"))
                if entry.is_first:
                    row.place = (versions.plans[span.uri][1], entry.plan, entry.position)
                for index in entry.indices:
                    maker = row.makers.get(index)
                    if maker is None or entry.retry >= maker.retry:
                        row.makers[index] = entry
    return rows
