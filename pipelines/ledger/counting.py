"""Decide which planned samples count: the entry that was planned last wins.

    a file     only the rows of its latest planned version count: those planned for it, and those that it carries from
               earlier versions (carried.py)
    a row      only the file that was planned last with its id, so a moved file does not duplicate its rows
    a sample   only the last retry that names it (plan/retry.py), committed or not

A row is identified by (uri, etag, row position), and a sample by its index as well, so an unreadable id column loses
nothing. The id of a row is the id that any attempt could read. An attempt that could not read it recorded the default
id.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.ledger.carried import FileVersion
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome
from pipelines.records import RowKey, Span

Identity = tuple[str, str, int, int]  # uri, etag, row position, sample index
InputVersion = tuple[str, str]  # uri, etag


@dataclass(frozen=True, slots=True)
class JudgedSample:
    """A committed sample, the id of its row, and whether it counts."""

    entry: PlannedShard
    sample: SampleOutcome
    row: str
    counts: bool


class InputVersions:
    """The input versions that count. `versions`: uri -> its latest planned version."""

    def __init__(self, versions: dict[str, FileVersion]) -> None:
        self.versions = versions

    def _is_latest(self, entry: PlannedShard, span: Span) -> bool:
        """Return whether a span of an entry is of the latest planned version itself.

        A file that changed and changed back has the same etag in two plan files. The later one counts.
        """
        version = self.versions[span.uri]
        return span.etag == version.etag and (not entry.is_first or entry.plan == version.plan)

    def rows_in(self, entry: PlannedShard, span: Span) -> int:
        """Return how many rows of a span of an entry are in the version of its file that counts."""
        if self._is_latest(entry, span):
            return span.rows
        carried = self.versions[span.uri].carried
        plan = entry.plan if entry.is_first else None
        return 0 if carried is None else carried.count(span.etag, span.start, span.stop, plan)

    def is_current(self, entry: PlannedShard, span: Span) -> bool:
        """Return whether a span of an entry has rows in the version that counts, or is that version without rows."""
        return self._is_latest(entry, span) or self.rows_in(entry, span) > 0

    def has_row(self, entry: PlannedShard, span: Span, position: int) -> bool:
        """Return whether a row of a span of an entry is in the version of its file that counts."""
        if self._is_latest(entry, span):
            return True
        carried = self.versions[span.uri].carried
        plan = entry.plan if entry.is_first else None
        return carried is not None and carried.at_of(span.etag, position, plan) is not None

    def is_superseded(self, entry: PlannedShard) -> bool:
        """Return whether no row of a shard counts, because none is in the latest planned version of its file."""
        return not any(self.is_current(entry, span) for span in entry.shard.spans)

    def current_samples(self, entry: PlannedShard) -> int:
        """Return how many samples of a shard belong to input versions that count."""
        return sum(self.rows_in(entry, span) for span in entry.shard.spans) * entry.samples_per_row

    def moved(self, entry: PlannedShard) -> dict[RowKey, tuple[str, int]]:
        """Return the etag and position at which carried rows of an entry can be read, by the keys of these rows."""
        places = {}
        for span in entry.shard.spans:
            carried = self.versions[span.uri].carried
            if carried is None or self._is_latest(entry, span):
                continue
            for position in range(span.start, span.stop):
                if (at := carried.at_of(span.etag, position)) is not None:
                    places[span.uri, span.etag, position] = carried.etag, at
        return places


class Counting(InputVersions):
    """Decides which samples of a plan count. `planned` is in (plan, position) order."""

    def __init__(
        self,
        planned: Sequence[PlannedShard],
        versions: dict[str, FileVersion] | None = None,
        retries: Sequence[PlannedShard] | None = None,
    ) -> None:
        """Take all shards of a plan, or a part of it together with what the rest of the plan says about that part.

        Args:
            versions: uri -> its latest version in the whole plan.
            retries: the retries of the whole plan.
        """
        super().__init__({} if versions is None else versions)
        self.planned = planned
        self.retries: dict[Identity, tuple[int, int]] = {}  # -> (plan, position) of the last retry that makes it
        for entry in planned if versions is None else ():
            if entry.is_first:
                carried = {rows.uri: rows for rows in entry.carried}
                for span in entry.shard.spans:
                    known = self.versions.get(span.uri)
                    if carried.get(span.uri) or known is None or known[:2] != (span.etag, entry.plan):
                        self.versions[span.uri] = FileVersion(span.etag, entry.plan, carried.get(span.uri))
        for entry in planned if retries is None else retries:
            if entry.retry:
                self.retries.update(dict.fromkeys(identities(entry), (entry.plan, entry.position)))
        self._retried: dict[str, list[int]] = {}  # uri -> row positions that retries name, sorted
        for uri, position in sorted({(uri, position) for uri, _, position, _ in self.retries}):
            self._retried.setdefault(uri, []).append(position)

    def is_whole(self, entry: PlannedShard) -> bool:
        """Return whether all samples of a shard certainly count: its files are current and no retry names its rows."""
        spans = entry.shard.spans
        return all(self.rows_in(entry, span) == span.rows and not self._is_retried(span) for span in spans)

    @property
    def may_share_rows(self) -> bool:
        """Whether two current files may hold the same row. Files of one listing never do (plan/propose.py)."""
        return len({version.plan for version in self.versions.values()}) > 1

    def _is_retried(self, span: Span) -> bool:
        positions = self._retried.get(span.uri, [])
        following = bisect_left(positions, span.start)
        return following < len(positions) and positions[following] < span.stop

    def makes(self, entry: PlannedShard, sample: SampleOutcome) -> bool:
        """Return whether a sample of an entry is of a current input version and no later retry replaces it."""
        span, place = entry.shard.spans[sample.span], (entry.plan, entry.position)
        identity = (span.uri, span.etag, sample.position, sample.index)
        return self.has_row(entry, span, sample.position) and self.retries.get(identity, place) == place

    def made(self, commits: Mapping[str, Commit]) -> Iterator[JudgedSample]:
        """Yield the committed samples of current files, where only a retry can replace one.

        Files that may share rows are judged in together.py.
        """
        committed = [e for e in self.planned if e.shard.id in commits and not self.is_superseded(e)]
        names = self._read_ids(committed, commits)
        for entry in committed:
            for sample in commits[entry.shard.id].samples:
                span = entry.shard.spans[sample.span]
                if self.has_row(entry, span, sample.position):
                    yield JudgedSample(entry, sample, _id_of_row(names, span, sample), self.makes(entry, sample))

    def row_versions(self, commits: Mapping[str, Commit]) -> dict[str, InputVersion]:
        """Map the row ids of committed shards to the input version whose row counts."""
        entries = [e for e in self.planned if e.shard.id in commits and not self.is_superseded(e)]
        return self._row_versions(entries, commits, self._read_ids(entries, commits))

    def _read_ids(self, committed: Sequence[PlannedShard], commits: Mapping[str, Commit]) -> dict[RowKey, str]:
        """Return the ids that were read from an id column. A row that is missing here has its default id."""
        names: dict[RowKey, str] = {}
        for entry in committed:
            for sample in commits[entry.shard.id].samples:
                span, name = entry.shard.spans[sample.span], row_id(sample)
                if name != f"{span.relative_path}:{sample.position}" and self.has_row(entry, span, sample.position):
                    names.setdefault((span.uri, span.etag, sample.position), name)
        return names

    def _row_versions(
        self, committed: Sequence[PlannedShard], commits: Mapping[str, Commit], names: Mapping[RowKey, str]
    ) -> dict[str, InputVersion]:
        versions: dict[str, InputVersion] = {}
        last: dict[str, int] = {}  # row id -> the plan file of that version
        for entry in committed:
            if entry.is_first:
                for sample in commits[entry.shard.id].samples:
                    span = entry.shard.spans[sample.span]
                    if self.has_row(entry, span, sample.position):
                        name, plan = _id_of_row(names, span, sample), self.versions[span.uri].plan
                        if plan >= last.get(name, 0):
                            versions[name], last[name] = (span.uri, span.etag), plan
        return versions


def _id_of_row(names: Mapping[RowKey, str], span: Span, sample: SampleOutcome) -> str:
    return names.get((span.uri, span.etag, sample.position)) or row_id(sample)


def identities(entry: PlannedShard) -> Iterator[Identity]:
    """Yield the identities of the samples that a shard produces."""
    for span in entry.shard.spans:
        for position in range(span.start, span.stop):
            for index in entry.indices:
                yield (span.uri, span.etag, position, index)


def row_id(sample: SampleOutcome) -> str:
    """Return the id of a sample's row."""
    return sample.id.rsplit("/", 1)[0]
