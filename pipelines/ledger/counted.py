"""What the latest version does not cover, and which of these samples count.

Where no two files can share a row and no sample is retried, shards are judged as they are read. Otherwise they are
judged together, with what the version covers of their rows (together.py). Some shards are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.before import Before
from pipelines.ledger.changes import Changes, find_changes
from pipelines.ledger.counting import Counting, InputVersions, JudgedSample
from pipelines.ledger.entries import Commit, Outcome, PlannedShard, Unfinished
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.segments import ShardRows
from pipelines.ledger.together import judged_together
from pipelines.ledger.versions import Version
from pipelines.records import Span

ReadCommits = Callable[[Iterable[str]], dict[str, Commit]]


@dataclass(frozen=True)
class Uncovered:
    """The shards that are new since the latest version, or affected by new ones."""

    ledger: Ledger
    before: Before
    changes: Changes
    read: ReadCommits
    is_partial: bool  # whether shards without a commit are left out

    @classmethod
    def since(
        cls, ledger: Ledger, latest: Version | None, is_partial: bool = False, read: ReadCommits | None = None
    ) -> Uncovered:
        """Compare the plan with the latest version; `read` replaces `ledger.read_commits`."""
        before = Before(ledger.storage, latest)
        return cls(ledger, before, find_changes(ledger, before), read or ledger.read_commits, is_partial)

    @classmethod
    def committed(cls, ledger: Ledger, latest: Version | None) -> Uncovered:
        """Compare what is committed by now with the latest version, for a partial version (basis.py)."""
        before = Before(ledger.storage, latest)
        return cls(ledger, before, find_changes(ledger, before, is_partial=True), ledger.read_commits, True)

    def as_planned(self) -> Uncovered:
        """Return the same plan files and commits, with what is planned counting (`planned_basis`)."""
        changes = find_changes(self.ledger, self.before, self.changes.plans)
        tables, made = self.ledger.plan_tables(), self.changes.new
        absent = {
            tables[number]["shard"][place].as_py()
            for number, places in changes.new.items()
            for place in set(places).difference(made[number])
        }

        def read(shards: Iterable[str]) -> dict[str, Commit]:
            return self.read(shard for shard in shards if shard not in absent)

        return Uncovered(self.ledger, self.before, changes, read, is_partial=True)

    @property
    def needs_all(self) -> bool:
        """Whether a sample can only be judged together with other shards."""
        return self.changes.may_share_rows or bool(self.changes.retries)

    def counting(self, entries: Sequence[PlannedShard]) -> Counting:
        """Return what decides which samples of these shards count."""
        return Counting(entries, self.changes.versions, self.changes.retries)


@dataclass
class CountedShard:
    """A committed shard with its samples of current files, and whether each counts."""

    entry: PlannedShard
    commit: Commit
    samples: list[JudgedSample]


def counted_shards(work: Uncovered) -> Iterator[list[CountedShard]]:
    """Yield the shards that are new or affected, some at a time, in the order of the plan.

    Raises:
        Unfinished: a shard that counts has no commit, and `work` is not partial.
    """
    chunks = ((entries, _read_commits(work, entries)) for entries in work.changes.chunks(work.ledger))
    if work.needs_all:
        for judged in judged_together(work, chunks):
            yield [CountedShard(*each) for each in judged]
        return
    for entries, commits in chunks:
        yield _shards(entries, commits, work.counting(entries).made(commits))


def _shards(
    entries: Sequence[PlannedShard], commits: Mapping[str, Commit], judged: Iterable[JudgedSample]
) -> list[CountedShard]:
    shards = {e.shard.id: CountedShard(e, commits[e.shard.id], []) for e in entries if e.shard.id in commits}
    for each in judged:
        shard = shards[each.entry.shard.id]
        if each.entry is shard.entry:  # else the shard was planned again later
            shard.samples.append(each)
    return list(shards.values())


def _read_commits(work: Uncovered, entries: Sequence[PlannedShard]) -> dict[str, Commit]:
    """Read the commits of some shards. Raises Unfinished where a shard that counts has none."""
    commits, versions = work.read(entry.shard.id for entry in entries), InputVersions(work.changes.versions)
    for entry in entries:
        if not work.is_partial and entry.shard.id not in commits and not versions.is_superseded(entry):
            what = "run the job to its end first, or publish what is committed"
            raise Unfinished(f"shard {entry.shard.id} is planned and not committed: {what}.")
    return commits


@dataclass(frozen=True, slots=True)
class MadeSample:
    """A committed sample that counts: its row, where it ended when it was made, and where it ends now."""

    uri: str
    etag: str
    path: str  # of the file, relative to input.uri
    position: int
    index: int
    round: int
    made: Outcome
    made_reasons: tuple[str, ...]
    outcome: Outcome  # in the latest version; of a sample that it lacks, the outcome in the commit
    reasons: tuple[str, ...]

    @property
    def row(self) -> Span:
        """The one row that it comes from."""
        return Span(self.uri, self.etag, self.path, self.position, self.position + 1)


def made_samples(work: Uncovered, **where: str) -> Iterator[MadeSample]:
    """Yield the committed samples that count.

    Args:
        where: the value that `made` or `outcome` must have.
    """
    looked_at: set[str] = set()
    for shards in counted_shards(work):
        old = work.before.shards([shard.entry.shard.id for shard in shards])
        looked_at.update(old)
        for shard in shards:
            ends = _ends_of(old.get(shard.entry.shard.id))
            for judged in shard.samples:
                if judged.counts:
                    made = _made_sample(judged, ends.get(judged.sample.id))
                    if all(getattr(made, name) == value for name, value in where.items()):
                        yield made
    if work.before.latest is None or work.before.is_old:
        return
    without = pa.array(sorted(looked_at), pa.string())
    names = [name for name in MadeSample.__dataclass_fields__ if name != "path"]
    for table in work.before.latest.content.samples([*names, "shard", "plan", "place"], where):
        left = table.filter(pc.invert(pc.is_in(table["shard"], without))) if looked_at else table
        makers = list(zip(left["plan"].to_pylist(), left["place"].to_pylist(), strict=True))
        spans = _spans_of(work.ledger, set(makers))
        for maker, values in zip(makers, zip(*(left[name].to_pylist() for name in names), strict=True), strict=True):
            row = dict(zip(names, values, strict=True))
            row |= {name: tuple(row[name] or ()) for name in ("made_reasons", "reasons")}
            file, position = (row["uri"], row["etag"]), row["position"]
            span = next(s for s in spans[maker] if s.file[:2] == file and s.start <= position < s.stop)
            yield MadeSample(path=span.relative_path, **row)


def _spans_of(ledger: Ledger, makers: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[Span, ...]]:
    """Return the spans of shards by (plan, place)."""
    places: dict[int, list[int]] = {}
    for number, place in sorted(makers):
        places.setdefault(number, []).append(place)
    entries = [entry for number, chosen in places.items() for entry in ledger.entries(number, chosen)]
    return {(entry.plan, entry.position): entry.shard.spans for entry in entries}


def _ends_of(shard: ShardRows | None) -> dict[str, tuple[Outcome, tuple[str, ...]]]:
    if shard is None:
        return {}
    columns = (shard.samples[name].to_pylist() for name in ("id", "since", "outcome", "reasons"))
    return {i: (outcome, tuple(reasons or ())) for i, since, outcome, reasons in zip(*columns, strict=True) if since}


def _made_sample(judged: JudgedSample, end: tuple[Outcome, tuple[str, ...]] | None) -> MadeSample:
    sample, span = judged.sample, judged.entry.shard.spans[judged.sample.span]
    outcome, reasons = end or (sample.outcome, sample.reasons)
    return MadeSample(
        uri=span.uri,
        etag=span.etag,
        path=span.relative_path,
        position=sample.position,
        index=sample.index,
        round=judged.entry.shard.round,
        made=sample.outcome,
        made_reasons=sample.reasons,
        outcome=outcome,
        reasons=reasons,
    )
