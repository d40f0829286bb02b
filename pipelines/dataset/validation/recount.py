"""Count which planned samples a version must hold, independently of ledger/counting.py.

counting.py iterates over shards and decides for each sample whether it counts. This file iterates over the samples that
were planned for the current files, and finds the attempt that made each one and the file that its row belongs to. There
is one reason to leave a sample out: a file that was planned later holds a row with its id, and that row counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Recount:
    """What a version of the whole plan must hold."""

    samples: list[CountedSample]  # in (plan, position) order
    pending: list[PlannedShard]  # shards without a commit that such a version needs


def recount(planned: Sequence[PlannedShard], commits: Mapping[str, Commit]) -> Recount:
    """Account for every planned sample of the files as they were planned last.

    Args:
        planned: shards in (plan, position) order.
    """
    rows = _planned_rows(planned)
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
    last: dict[
        str, tuple[tuple[int, int, int], str]
    ] = {}  # row id -> (place, uri) of the row that was planned last with it
    for (uri, _, _), row in rows.items():
        if row.ids:
            last[row.id] = max((row.place, uri), last.get(row.id, (row.place, uri)))
    counted = [CountedSample(e, sample) for e, sample, row in made if last[row.id][1] == e.shard.spans[sample.span].uri]
    return Recount(counted, pending)


def _planned_rows(planned: Sequence[PlannedShard]) -> dict[RowKey, _PlannedRow]:
    """Return the rows of the latest planned file versions, with the last shard that makes each of their samples."""
    version: dict[str, tuple[str, int]] = {}  # uri -> etag, plan
    carried: dict[str, dict[tuple[str, int], int]] = {}  # uri -> (etag, position) of carried rows -> who planned them
    for entry in planned:
        for span in entry.shard.spans if entry.is_first else ():
            if version.get(span.uri) != (span.etag, entry.plan):
                version[span.uri], carried[span.uri] = (span.etag, entry.plan), {}
        for rows in entry.carried:
            for number, start, count in zip(rows.origin, rows.start, rows.rows, strict=True):
                etag, plan, _ = rows.origins[number]
                carried[rows.uri].update({(etag, position): plan for position in range(start, start + count)})
    rows_of: dict[RowKey, _PlannedRow] = {}
    for entry in planned:
        for span in entry.shard.spans:
            etag, plan = version.get(span.uri, ("", 0))
            for position in range(span.start, span.stop):
                planner = carried.get(span.uri, {}).get((span.etag, position), plan if span.etag == etag else None)
                if planner is None or (entry.is_first and entry.plan != planner):
                    continue
                key = (span.uri, span.etag, position)
                row = rows_of.setdefault(key, _PlannedRow((0, 0, 0), f"{span.relative_path}:{position}"))
                if entry.is_first:
                    row.place = (plan, entry.plan, entry.position)
                for index in entry.indices:
                    maker = row.makers.get(index)
                    if maker is None or entry.retry >= maker.retry:
                        row.makers[index] = entry
    return rows_of
