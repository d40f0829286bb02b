"""Decide which planned samples count: the entry that was planned last wins.

    a file     only its latest planned input version counts
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

from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome
from pipelines.records import Span

Identity = tuple[str, str, int, int]  # uri, etag, row position, sample index
RowKey = tuple[str, str, int]  # uri, etag, row position
InputVersion = tuple[str, str]  # uri, etag


@dataclass(frozen=True, slots=True)
class JudgedSample:
    """A committed sample, the id of its row, and whether it counts."""

    entry: PlannedShard
    sample: SampleOutcome
    row: str
    counts: bool


class InputVersions:
    """The input versions that count. `versions`: uri -> (its latest planned etag, the number of that plan file)."""

    def __init__(self, versions: dict[str, tuple[str, int]]) -> None:
        self.versions = versions

    def is_current(self, entry: PlannedShard, span: Span) -> bool:
        """Return whether a span of an entry belongs to the input version that counts.

        A file that changed and changed back has the same etag in two plan files. The later one counts.
        """
        etag, plan = self.versions[span.uri]
        return span.etag == etag and (not entry.is_first or entry.plan == plan)

    def is_superseded(self, entry: PlannedShard) -> bool:
        """Return whether no row of a shard counts, because each of its files has a newer planned version."""
        return not any(self.is_current(entry, span) for span in entry.shard.spans)

    def current_samples(self, entry: PlannedShard) -> int:
        """Return how many samples of a shard belong to input versions that count."""
        rows = sum(span.rows for span in entry.shard.spans if self.is_current(entry, span))
        return rows * entry.samples_per_row


class Counting(InputVersions):
    """Decides which samples of a plan count. `planned` is in (plan, position) order."""

    def __init__(
        self,
        planned: Sequence[PlannedShard],
        versions: dict[str, tuple[str, int]] | None = None,
        retries: Sequence[PlannedShard] | None = None,
    ) -> None:
        """Take all shards of a plan, or a part of it together with what the rest of the plan says about that part.

        Args:
            versions: uri -> (latest planned etag, number of that plan file) of the whole plan.
            retries: the retries of the whole plan.
        """
        super().__init__({} if versions is None else versions)
        self.planned = planned
        self.retries: dict[Identity, tuple[int, int]] = {}  # -> (plan, position) of the last retry that makes it
        for entry in planned if versions is None else ():
            if entry.is_first:
                self.versions.update({span.uri: (span.etag, entry.plan) for span in entry.shard.spans})
        for entry in planned if retries is None else retries:
            if entry.retry:
                self.retries.update(dict.fromkeys(identities(entry), (entry.plan, entry.position)))
        self._retried: dict[str, list[int]] = {}  # uri -> row positions that retries name, sorted
        for uri, position in sorted({(uri, position) for uri, _, position, _ in self.retries}):
            self._retried.setdefault(uri, []).append(position)

    def is_whole(self, entry: PlannedShard) -> bool:
        """Return whether all samples of a shard certainly count: its files are current and no retry names its rows."""
        return all(self.is_current(entry, span) and not self._is_retried(span) for span in entry.shard.spans)

    @property
    def may_share_rows(self) -> bool:
        """Whether two current files may hold the same row. Files of one listing never do (plan/propose.py)."""
        return len({plan for _, plan in self.versions.values()}) > 1

    def _is_retried(self, span: Span) -> bool:
        positions = self._retried.get(span.uri, [])
        following = bisect_left(positions, span.start)
        return following < len(positions) and positions[following] < span.stop

    def makes(self, entry: PlannedShard, sample: SampleOutcome) -> bool:
        """Return whether a sample of an entry is of a current input version and no later retry replaces it."""
        span, place = entry.shard.spans[sample.span], (entry.plan, entry.position)
        identity = (span.uri, span.etag, sample.position, sample.index)
        return self.is_current(entry, span) and self.retries.get(identity, place) == place

    def made(self, commits: Mapping[str, Commit]) -> Iterator[JudgedSample]:
        """Yield the committed samples of current files, where only a retry can replace one.

        Files that may share rows are judged in together.py.
        """
        committed = [e for e in self.planned if e.shard.id in commits and not self.is_superseded(e)]
        names = self._read_ids(committed, commits)
        for entry in committed:
            for sample in commits[entry.shard.id].samples:
                span = entry.shard.spans[sample.span]
                if self.is_current(entry, span):
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
                if name != f"{span.relative_path}:{sample.position}" and self.is_current(entry, span):
                    names.setdefault((span.uri, span.etag, sample.position), name)
        return names

    def _row_versions(
        self, committed: Sequence[PlannedShard], commits: Mapping[str, Commit], names: Mapping[RowKey, str]
    ) -> dict[str, InputVersion]:
        versions: dict[str, InputVersion] = {}
        for entry in committed:
            if entry.is_first:
                for sample in commits[entry.shard.id].samples:
                    span = entry.shard.spans[sample.span]
                    if self.is_current(entry, span):
                        versions[_id_of_row(names, span, sample)] = (span.uri, span.etag)
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
