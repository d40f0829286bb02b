"""Plan a changed file by its rows: those that were made before are carried, all others are planned.

A file that changed back to a version that was planned before carries what was made of it then, without being read. Any
other changed table is read once, and its rows are matched with the rows that were made of the latest planned version
(matching.py). Where nothing can be compared, the file is made again: an archive, or rows that were made before content
hashes were kept.

Ids: a carried row keeps its id. A row that is made again and has no id of its own would share a default id with other
content if its row number was used before. So its relative path is extended by the number of the plan file, as in
`prompts.txt@2:7`. Row numbers that were never used keep the plain form, so appended rows have the ids that they would
have had from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jointdit.errors import RowError
from pipelines.ledger.carried import CarriedRows, Origin, extended_path, joined, of_runs
from pipelines.ledger.changes import SHARDS_AT_ONCE
from pipelines.ledger.counted import Uncovered
from pipelines.ledger.counting import Counting, row_id
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.plan_tables import (
    carried_in,
    carrying,
    flat_spans,
    highest_rows,
    is_first,
    parents_of,
    row_counts,
    versions_of,
)
from pipelines.plan.matching import ROWS_AT_ONCE, RowBatch, match_rows
from pipelines.records import SourceFile, Span
from pipelines.spec.job import JobSpec
from pipelines.stages.readers import FORMATS, is_comparable, read_contents, suffix_of
from pipelines.stages.readers.rows import default_id

_MadeSample = tuple[str, str, int, int, str, str | None]  # uri, etag, position, index, row id, content hash
NO_HASHES = "its rows were made before content hashes were kept"
OF_ARCHIVE = "rows of an archive are not compared"


@dataclass(frozen=True)
class FileChange:
    """What a changed file costs. Rows that are neither carried nor changed nor made again are new."""

    uri: str
    rows: int
    carried: int = 0
    changed: int = 0
    gone: int = 0  # rows that leave the next version
    made_again: str = ""  # why all rows are made again, whether they have changed or not

    def __str__(self) -> str:
        """Return the file and what becomes of its rows."""
        return f"{self.uri}: {self.counts}{f' ({self.made_again})' if self.made_again else ''}"

    @property
    def counts(self) -> RowCounts:
        """Its rows by what becomes of them."""
        if self.made_again:
            return RowCounts(again=self.rows)
        return RowCounts(self.carried, self.rows - self.carried - self.changed, self.changed, 0, self.gone)


@dataclass(frozen=True)
class RowCounts:
    """The rows of the listed input, compared with what was planned and made."""

    unchanged: int = 0
    new: int = 0
    changed: int = 0
    again: int = 0  # of files that are made again because their rows cannot be compared
    gone: int = 0  # made rows of changed files that are not there any more

    @property
    def total(self) -> int:
        """The rows of the listed input."""
        return self.unchanged + self.new + self.changed + self.again

    def __str__(self) -> str:
        """Return the counts in words, such as "36 rows: 23 unchanged, 12 new, 1 changed"."""
        shown = [(self.unchanged, "unchanged"), (self.new, "new"), (self.changed, "changed")]
        shown += [(self.again, "made again"), (self.gone, "gone")]
        parts = ", ".join(f"{count:,} {word}" for count, word in shown if count)
        return f"{self.total:,} row{'' if self.total == 1 else 's'}{': ' if parts else ''}{parts}"


NO_ROWS = RowCounts()


@dataclass(frozen=True)
class PlannedChange:
    """A changed file: the rows that it carries, and the spans of those that are planned."""

    change: FileChange
    carried: CarriedRows
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class _PlannedRows:
    """Rows of a file that a plan file planned to be made."""

    plan: int
    shard: str
    span: Span


class ChangedFiles:
    """Plans the files of one proposal of which a version is planned already."""

    def __init__(self, work: Uncovered, number: int, spec: JobSpec, files: Sequence[SourceFile]) -> None:
        """`number`: of the plan file to be; `files`: those that may be planned with it."""
        self.work, self.spec, self._number = work, spec, number
        self._tables = work.ledger.plan_tables()
        self._versions = versions_of(self._tables)
        listed = {file.uri for file in files}
        retries = [e for e in work.changes.retries if any(span.uri in listed for span in e.shard.spans)]
        made = self._committed({entry.shard.id for entry in retries})
        self._counting = Counting((), self._versions, [entry for entry in retries if entry.shard.id in made])
        self._highest = highest_rows(self._tables, {file.relative_path for file in files})
        self._planned: dict[str, list[_PlannedRows]] = {file.uri: [] for file in files}
        self._carried: dict[tuple[str, int], CarriedRows] = {}  # by file and plan file
        self._places: dict[str, list[tuple[int, int]]] = {file.uri: [] for file in files}  # (plan, place) of shards
        uris = pa.array(sorted(self._planned), pa.string())
        for plan, table in self._tables.items():
            spans, parents = flat_spans(table), parents_of(table)
            mine = pc.is_in(spans.field("uri"), uris)
            places = parents.filter(mine)
            firsts, shards = is_first(table).take(places).to_pylist(), table["shard"].take(places).to_pylist()
            rows = zip(spans.filter(mine).to_pylist(), places.to_pylist(), firsts, shards, strict=True)
            for fields, place, first, shard in rows:
                if first:
                    self._planned[fields["uri"]].append(_PlannedRows(plan, shard, Span(**fields)))
                if self._places[fields["uri"]][-1:] != [(plan, place)]:
                    self._places[fields["uri"]].append((plan, place))
            for carried in (rows for place in carrying(table) for rows in carried_in(table, place)):
                if carried.uri in self._planned:
                    self._carried[carried.uri, plan] = carried

    def plan(self, file: SourceFile, count: Callable[[SourceFile], int]) -> PlannedChange:
        """Plan a file. `count` returns the rows of a file, and checks its version.

        Raises:
            InputError: the file is damaged as a whole. TransientError, StoreError: the store fails.
        """
        plans = [rows.plan for rows in self._planned[file.uri] if rows.span.etag == file.etag]
        if plans:
            return self._as_before(file, max(plans), count)
        rows = count(file)
        if suffix_of(file.uri) not in FORMATS:  # a single image, which is one row
            return PlannedChange(FileChange(file.uri, rows, changed=rows), _nothing(file), whole_file(file, rows))
        if not is_comparable(file):
            change = FileChange(file.uri, rows, made_again=OF_ARCHIVE)
            return PlannedChange(change, _nothing(file), whole_file(file, rows))
        version = self._versions[file.uri]
        made = self._rows_of_version(file.uri, version.etag, version.plan, lambda _: True)
        if not self._has_contents(file.uri, made):
            spans = self.with_unused_ids(whole_file(file, rows))
            return PlannedChange(FileChange(file.uri, rows, made_again=NO_HASHES), _nothing(file), spans)
        matches = match_rows(self._made_rows(file.uri, made), self._rows_of(file), rows)
        count(file)  # it is still the version that was read
        carried = made.taken(file.etag, matches.at, matches.made_at, matches.rows)
        ends = np.concatenate([[0], matches.at + matches.rows]).tolist()
        gaps = zip(ends, [*matches.at.tolist(), rows], strict=True)
        change = FileChange(file.uri, rows, carried.total, matches.changed, matches.gone)
        return PlannedChange(change, carried, self.with_unused_ids(_spans(file, gaps)))

    def with_unused_ids(self, spans: Iterable[Span]) -> tuple[Span, ...]:
        """Extend the paths of those rows whose default ids were used before."""
        result = []
        for span in spans:
            used = self._highest[span.relative_path]
            if span.start < used:
                path = extended_path(span.relative_path, self._number)
                result.append(replace(span, relative_path=path, stop=min(span.stop, used)))
            if span.stop > used:
                result.append(replace(span, start=max(span.start, used)))
        return tuple(result)

    def _as_before(self, file: SourceFile, plan: int, count: Callable[[SourceFile], int]) -> PlannedChange:
        """Plan a file in a version that was planned before: what was made of it then counts again."""
        of_plan = [rows for rows in self._planned[file.uri] if (rows.span.etag, rows.plan) == (file.etag, plan)]
        made = self._committed({rows.shard for rows in of_plan})
        carried = self._rows_of_version(file.uri, file.etag, plan, lambda rows: rows.shard in made)
        pending = tuple(rows.span for rows in of_plan if rows.shard not in made and rows.span.rows)
        rows = carried.total + sum(span.rows for span in pending)
        if pending and self._versions[file.uri].etag != file.etag and is_comparable(file):
            carried, pending = self._with_latest(file, carried, pending, count)
        return PlannedChange(FileChange(file.uri, rows, carried.total), carried, pending)

    def _with_latest(
        self, file: SourceFile, carried: CarriedRows, pending: Iterable[Span], count: Callable[[SourceFile], int]
    ) -> tuple[CarriedRows, tuple[Span, ...]]:
        """Carry also those pending rows that were made of the latest version. Returns carried rows and other spans."""
        version = self._versions[file.uri]
        made = self._rows_of_version(file.uri, version.etag, version.plan, lambda _: True)
        is_pending = np.zeros(count(file), bool)
        for span in pending:
            is_pending[span.start : span.stop] = True
        is_free = np.ones(int(made.at[-1] + made.rows[-1]) if len(made.at) else 0, bool)
        for number, origin in enumerate(carried.origins):  # each row of the latest version is carried once
            mine = carried.origin == number
            for start, rows in zip(carried.start[mine], carried.rows[mine], strict=True):
                ats = made.at_of_all(origin.etag, np.arange(start, start + rows), origin.plan)
                is_free[ats[ats >= 0]] = False
        made_rows, listed = self._made_rows(file.uri, made), self._rows_of(file)
        matches = match_rows(_only(made_rows, is_free), _only(listed, is_pending), len(is_pending))
        count(file)  # it is still the version that was read
        for at, rows in zip(matches.at, matches.rows, strict=True):
            is_pending[at : at + rows] = False
        left = (
            replace(span, start=int(part[0]), stop=int(part[-1]) + 1)
            for span in pending
            for places in [span.start + np.flatnonzero(is_pending[span.start : span.stop])]
            for part in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
            if len(part)
        )
        return joined(carried, made.taken(file.etag, matches.at, matches.made_at, matches.rows)), tuple(left)

    def _rows_of_version(self, uri: str, etag: str, plan: int, chosen: Callable[[_PlannedRows], bool]) -> CarriedRows:
        """Return the rows of a planned version by their origins: those that it planned, if chosen, and carried."""
        runs = [
            (rows.span.start, Origin(etag, plan, rows.span.relative_path), rows.span.start, rows.span.rows)
            for rows in self._planned[uri]
            if (rows.span.etag, rows.plan) == (etag, plan) and rows.span.rows and chosen(rows)
        ]
        own, carried = of_runs(uri, etag, runs), self._carried.get((uri, plan))
        return own if carried is None else joined(own, carried)

    def _committed(self, shards: set[str]) -> set[str]:
        covered = self.work.before.covered
        known = set(covered.filter(pc.is_in(covered, pa.array(sorted(shards), pa.string()))).to_pylist())
        return known | self.work.read(shards - known).keys()

    def _has_contents(self, uri: str, made: CarriedRows) -> bool:
        """Return whether a row of a file has a content hash, or no row of it was made at all."""
        is_made = False
        for batch in self._made_rows(uri, made):
            if any(batch.contents):
                return True
            is_made = is_made or bool(batch.contents)
        return not is_made

    def _rows_of(self, file: SourceFile) -> Iterator[RowBatch]:
        batch = RowBatch([], [], [])
        try:
            for position, identifier, content in read_contents(file, self.spec.input, self.spec.reading):
                batch.places.append(position)
                batch.ids.append(identifier)
                batch.contents.append(content)
                if len(batch.places) == ROWS_AT_ONCE:
                    yield batch
                    batch = RowBatch([], [], [])
        except RowError:
            pass  # the rest is planned, and quarantined when it is read
        if batch.places:
            yield batch

    def _made_rows(self, uri: str, made: CarriedRows) -> Iterator[RowBatch]:
        """Yield the rows of the latest planned version that were made, at their places in it."""
        places = self._places[uri]
        for start in range(0, len(places), SHARDS_AT_ONCE):
            by_plan: dict[int, list[int]] = {}
            for plan, place in places[start : start + SHARDS_AT_ONCE]:
                by_plan.setdefault(plan, []).append(place)
            entries = [e for plan, chosen in by_plan.items() for e in self.work.ledger.entries(plan, chosen)]
            current = [entry for entry in entries if self._has_rows_of(uri, entry)]
            if batch := self._made_by(current, uri, made):
                yield batch

    def _has_rows_of(self, uri: str, entry: PlannedShard) -> bool:
        return any(span.uri == uri and self._counting.rows_in(entry, span) > 0 for span in entry.shard.spans)

    def _made_by(self, entries: Sequence[PlannedShard], uri: str, made: CarriedRows) -> RowBatch | None:
        samples_of = {entry.shard.id: entry.samples for entry in entries}
        found = self.work.before.shards(samples_of)
        covered = {name: rows for name, rows in found.items() if len(rows.samples) == samples_of[name]}  # else commits
        commits = self.work.read([e.shard.id for e in entries if e.shard.id not in covered])
        batch = RowBatch([], [], [])
        for entry in entries:
            samples: Iterable[_MadeSample] = ()
            if entry.shard.id in covered:
                table = covered[entry.shard.id].samples
                columns = ("uri", "etag", "position", "index", "row", "content")
                samples = zip(*(table[name].to_pylist() for name in columns), strict=True)
            elif entry.shard.id in commits:
                files = [span.file[:2] for span in entry.shard.spans]
                of_commit = commits[entry.shard.id].samples
                samples = ((*files[s.span], s.position, s.index, row_id(s), s.content) for s in of_commit)
            self._add_rows(batch, entry, uri, made, samples)
        return batch if batch.places else None

    def _add_rows(
        self, batch: RowBatch, entry: PlannedShard, uri: str, made: CarriedRows, samples: Iterable[_MadeSample]
    ) -> None:
        """Add those samples of a shard to a batch that are of a file and that no later retry has replaced."""
        place, plan = (entry.plan, entry.position), entry.plan if entry.is_first else None
        retries = self._counting.retries
        chosen = [s for s in samples if s[0] == uri and retries.get(s[:4], place) == place]
        for span in entry.shard.spans:
            own = [s for s in chosen if s[1] == span.etag and span.start <= s[2] < span.stop] if span.uri == uri else []
            ats = made.at_of_all(span.etag, np.array([s[2] for s in own], np.int64), plan).tolist()
            for (_, _, position, _, identifier, content), at in zip(own, ats, strict=True):
                if at >= 0:
                    batch.places.append(at)
                    batch.ids.append("" if identifier == default_id(span, position) else identifier)
                    batch.contents.append(content or "")


def _only(batches: Iterable[RowBatch], chosen: NDArray[np.bool_]) -> Iterator[RowBatch]:
    """Yield the rows at chosen places."""
    for batch in batches:
        rows = zip(batch.places, batch.ids, batch.contents, strict=True)
        kept = [row for row in rows if chosen[row[0]]]
        if kept:
            yield RowBatch([row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept])


def whole_file(file: SourceFile, rows: int) -> tuple[Span, ...]:
    """Return the span of all rows of a file; none if it has no rows."""
    return _spans(file, [(0, rows)])


def count_listed(
    tables: Mapping[int, pa.Table], listed: Iterable[SourceFile], changes: Iterable[FileChange], new: Mapping[str, int]
) -> RowCounts:
    """Count the rows of the listed files.

    Args:
        changes: of the files that are planned again.
        new: uri -> rows of the files that are planned for the first time.
    """
    by_uri = {change.uri: change.counts for change in changes}
    planned = row_counts(tables)
    unchanged = sum(planned[file.uri] for file in listed if file.uri not in by_uri and file.uri not in new)
    parts = [RowCounts(unchanged, sum(new.values())), *by_uri.values()]
    names = RowCounts.__dataclass_fields__
    return RowCounts(**{name: sum(getattr(part, name) for part in parts) for name in names})


def _spans(file: SourceFile, ranges: Iterable[tuple[int, int]]) -> tuple[Span, ...]:
    return tuple(Span(file.uri, file.etag, file.relative_path, *rows) for rows in ranges if rows[0] < rows[1])


def _nothing(file: SourceFile) -> CarriedRows:
    return of_runs(file.uri, file.etag, ())
