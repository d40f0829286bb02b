"""Make a published version from commits.

    _versions/000001/version.json     counts, the segments of the version, what it was made from; create-only
    _versions/segments/...            samples and shards as columns (ledger/segments.py)
    README.md  stats.json  gallery/   describe the latest version; rewritten with each one

The plan decides which samples count (ledger/counting.py), decisions.py decides where they end, and tables.py writes the
tables that do not exist yet. A version keeps the segments of the version before it and adds one with the shards that
are new or changed (changes.py). So only commits that no segment covers are read, and a run that finds nothing new reads
no commit and publishes nothing.

Creating `version.json` is the only step that publishes. A publisher reads the highest version, N - 1, and then the
plan. It writes segments and tables under names of its own and creates `version.json` of N. If the create succeeds, N -
1 was the latest version until then, so no decision was missed and garbage collection kept every object that N - 1
names. If the create fails, the publisher decides again from the new latest version, under new names. A version
therefore borrows objects only from the version before it and from commits; what only older versions have is written
again. Once a number is taken, `jointdit gc` deletes what other publishers wrote for it.

A partial version (`publish_committed`) is made in the same way of what is committed by then. Which samples count in it
is decided by ledger/basis.py, and withheld.py says which of them wait. Any later version goes on from it.

The criteria of a version come from the spec of the run that published it, until `jointdit refilter` (refilter.py) sets
them for the whole dataset. From then on they hold for later samples too, and the criteria in specs are ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import PermanentError, StoreError
from pipelines.dataset.decide import DecidedShard, decide_shards
from pipelines.dataset.decisions import Criteria, Decided
from pipelines.dataset.merging import merged
from pipelines.dataset.tables import PublishAttempt, ShardTables, ids_by_outcome
from pipelines.dataset.withheld import open_rows
from pipelines.ledger.before import Before
from pipelines.ledger.changes import Changes
from pipelines.ledger.counted import Uncovered
from pipelines.ledger.entries import OUTCOMES, Outcome, new_token, now
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.names import version_object
from pipelines.ledger.segments import SAMPLES, SegmentWriter, ShardRows
from pipelines.ledger.versions import Size, Version, read_latest
from pipelines.model.fingerprint import code_version
from pipelines.spec.job import JobSpec, PointsSpec, QualitySpec, load_spec
from pipelines.store.connections import PARALLEL_TABLES
from pipelines.store.storage import AlreadyExists, Storage

PUBLISH_ATTEMPTS = 100


@dataclass(frozen=True)
class Decision:
    """The content of a version."""

    shards: Iterable[Sequence[DecidedShard]]  # those that may differ from the version before, in the order of the plan
    spec: JobSpec
    criteria: Criteria
    is_refilter: bool = False  # whether this version sets the criteria


Decide = Callable[[Uncovered], Decision]


def publish(storage: Storage, ledger: Ledger, spec: JobSpec) -> tuple[Version, bool]:
    """Return the version that covers all planned shards, and whether it is new.

    Raises:
        Unfinished: a shard that counts has no commit.
    """
    version, is_new = publish_decision(storage, ledger, partial(decide_run, spec), lambda _: False)
    assert version is not None, "a first whole version is always new"
    return version, is_new


def publish_committed(storage: Storage, ledger: Ledger, spec: JobSpec | None = None) -> tuple[Version | None, bool]:
    """Publish what is committed. Returns the latest version, None where no sample is committed, and whether it is new.

    The version is partial unless everything that is planned is committed.

    Args:
        spec: of the run that publishes; by default that of the latest version, or of the job.

    Raises:
        PermanentError: there is no plan.
    """

    def decide(work: Uncovered) -> Decision:
        latest = work.before.latest
        return decide_run(spec or (latest.spec if latest is not None else load_spec(ledger.read_job().spec)), work)

    return publish_decision(storage, ledger, decide, lambda _: True)


def decide_run(spec: JobSpec, work: Uncovered) -> Decision:
    """Decide the version of a run: decisions of the latest version stand, samples that it lacks are decided now."""
    latest = work.before.latest
    spec = spec_in_force(spec, latest)
    is_refiltered = latest is not None and latest.refilter > 0
    criteria = Criteria.from_json(latest.criteria) if latest and is_refiltered else Criteria.of(spec.quality)
    waiting = open_rows(spec, work) if work.is_partial and criteria.keep_best is not None else ()
    return Decision(decide_shards(work, criteria, is_refiltered, spec.task, waiting), spec, criteria)


def spec_in_force(spec: JobSpec, latest: Version | None) -> JobSpec:
    """Return a run's spec with the criteria that `jointdit refilter` set for its output, if it did."""
    if latest is None or not latest.refilter:
        return spec
    quality = {**spec.quality.model_dump(exclude_unset=True, exclude={"calibrated"}), **latest.criteria}
    return spec.model_copy(update={"quality": QualitySpec.model_validate(quality)})


def publish_decision(
    storage: Storage, ledger: Ledger, decide: Decide, may_be_partial: Callable[[Version | None], bool]
) -> tuple[Version | None, bool]:
    """Publish what `decide` returns. Returns the version, and whether it is new.

    Args:
        may_be_partial: whether the next version leaves out what is not committed, from the latest version.

    Raises:
        PermanentError: there is no plan, or other drivers published each time before this one could.
        StoreError: an object that the latest version names is missing.
    """
    for _ in range(PUBLISH_ATTEMPTS):
        latest = read_latest(storage)
        try:
            work = (Uncovered.committed if may_be_partial(latest) else Uncovered.since)(ledger, latest)
            version = _next_version(storage, work, decide)
        except FileNotFoundError as error:
            newest = read_latest(storage)
            if newest is None or (latest is not None and newest.number == latest.number):
                raise StoreError(
                    f"{error} is missing and the next version needs it: restore it from a backup."
                ) from error
            continue  # `latest` was superseded and pruned in the meantime
        if version is None:
            return latest, False
        try:
            storage.create_bytes(version_object(version.number, "version.json"), version.to_bytes())
        except AlreadyExists:
            continue  # another publisher was first, so this decision may not hold any more
        return version, True
    raise PermanentError(f"other drivers keep publishing {storage.uri}: run again when they are done.")


def _next_version(storage: Storage, work: Uncovered, decide: Decide) -> Version | None:
    """Write the objects of the next version. Returns None if nothing changed since the latest one."""
    latest = work.before.latest
    if not work.changes.plans:
        raise PermanentError(f"{storage.uri} has no plan: there is nothing to publish.")
    attempt = PublishAttempt(latest.number + 1 if latest else 1, new_token())
    decision = decide(work)
    writer = SegmentWriter(storage, attempt.number, attempt.token, decision.criteria.max_distance is not None)
    publication = _Publication(storage, attempt, work.before, writer, decision)
    publication.write()
    version = publication.version(work.changes)
    sets_criteria = decision.is_refilter and (latest is None or latest.criteria != decision.criteria.to_json())
    is_complete = not version.is_partial and (latest is None or latest.is_partial)
    if not (publication.has_changed or sets_criteria or is_complete):
        for segment in writer.segments:
            for path in segment.paths:
                storage.delete(path)
        return None
    return version


class _Publication:
    """One attempt to write a version: the shards of its decision, and sums over all shards."""

    def __init__(
        self, storage: Storage, attempt: PublishAttempt, before: Before, writer: SegmentWriter, decision: Decision
    ) -> None:
        self.storage, self.attempt, self.before, self.writer = storage, attempt, before, writer
        self.decision = decision
        self.has_changed = False
        latest = before.latest if before.latest and not before.is_old else None
        self.counts = Counter[str](latest.counts if latest else {})
        self.reasons = Counter[str](latest.reasons if latest else {})
        self.superseded = latest.superseded if latest else 0
        self.withheld = latest.withheld if latest else 0
        self.sizes: dict[str, Counter[str]] = {
            outcome: Counter({"files": size.files, "rows": size.rows, "bytes": size.bytes})
            for outcome, size in (latest.sizes if latest else {}).items()
        }
        self._seen = 0  # samples of an old version that are still there

    def write(self) -> None:
        """Write the tables and segments of the decided shards."""
        points = self.decision.spec.output.points
        with ThreadPoolExecutor(PARALLEL_TABLES) as pool:
            for shards in self.decision.shards:
                known = self.before.shards([each.entry.shard.id for each in shards])
                made = pool.map(lambda each, known=known: self._make(each, known, points), shards)
                for decided, rows in zip(shards, made, strict=True):
                    self._add(known.get(decided.entry.shard.id), rows)
                    if not decided.entry.samples and decided.entry.shard.id not in known and not self.before.is_old:
                        self.has_changed = True  # the file has a version without rows to make
        if self.before.is_old and self.before.old_samples != self._seen:
            self.has_changed = True
        self.writer.flush()

    def _make(self, decided: DecidedShard, known: Mapping[str, ShardRows], points: PointsSpec) -> ShardRows:
        """Write the tables of a shard that do not exist yet. Returns what the segment holds of it."""
        entry, old = decided.entry, known.get(decided.entry.shard.id)
        ids = ids_by_outcome((sample.outcome, sample.id) for sample in decided.decided.values())
        files = old.files if old is not None else ()
        if old is None or ids != _ids_of(old):
            borrowed = {file.sha256: file.path for file in files}
            borrowed |= {cloud.sha256: cloud.path for file in files for cloud in file.clouds}
            tables = ShardTables(self.storage, self.attempt, decided, borrowed, points)
            files = tuple(tables.files(ids))
        samples = _samples_of(decided, {file.outcome: file.path for file in files}, self.attempt.number)
        superseded = len(decided.commit.samples) - len(decided.decided) - decided.withheld
        is_covered = old is not None and not self.before.is_old
        place, sums = (entry.shard.id, entry.plan, entry.position), (superseded, is_covered, decided.withheld)
        return ShardRows(*place, samples, files, *sums)

    def _add(self, old: ShardRows | None, new: ShardRows) -> None:
        """Add a shard to the segment, unless the segment that has it says the same of it."""
        is_same = old is not None and _content_of(old, self.before.is_old) == _content_of(new, self.before.is_old)
        if is_same:
            self._seen += len(_counted(new))
            if old is not None and (old.plan, old.place, old.withheld) == (new.plan, new.place, new.withheld):
                return  # never of an old version, which does not record the place
        elif old is not None or len(_counted(new)):
            self.has_changed = True
        if old is not None and not self.before.is_old:
            self._sum(old, -1)
        self._sum(new, 1)
        self.writer.add(new)

    def _sum(self, shard: ShardRows, sign: int) -> None:
        counted = _counted(shard)
        for outcome in counted["outcome"].to_pylist():
            self.counts[outcome] += sign
        for reasons in counted["reasons"].to_pylist():
            for reason in reasons or ():
                self.reasons[reason.split(":")[0]] += sign
        self.superseded += sign * shard.superseded
        self.withheld += sign * shard.withheld
        for file in shard.files:
            size = self.sizes.setdefault(file.outcome, Counter())
            size.update({"files": sign, "rows": sign * file.rows, "bytes": sign * file.bytes})

    def version(self, changes: Changes) -> Version:
        """Return the version that the written objects make."""
        latest, decision = self.before.latest, self.decision
        segments = [*(latest.segments if latest else ()), *self.writer.segments]
        return Version(
            number=self.attempt.number,
            counts={outcome: self.counts[outcome] for outcome in OUTCOMES},
            superseded=self.superseded,
            reasons={kind: count for kind, count in self.reasons.items() if count},
            plans=changes.plans,
            created=now(),
            code=code_version(),
            recorded_spec=decision.spec.as_given(),
            criteria=decision.criteria.to_json(),
            is_partial=changes.missing.shards + self.withheld > 0,
            left_out=changes.missing.samples + self.withheld,
            withheld=self.withheld,
            refilter=self.attempt.number if decision.is_refilter else latest.refilter if latest else 0,
            sizes={outcome: Size(**size) for outcome, size in self.sizes.items() if size["files"]},
            segments=tuple(merged(self.storage, segments, self.attempt)),
            storage=self.storage,
        )


def _counted(shard: ShardRows) -> pa.Table:
    return shard.samples.filter(pc.greater(shard.samples["since"], 0))


def _ids_of(shard: ShardRows) -> dict[Outcome, list[str]]:
    counted = _counted(shard)
    return ids_by_outcome(zip(counted["outcome"].to_pylist(), counted["id"].to_pylist(), strict=True))


def _content_of(shard: ShardRows, counted_alone: bool) -> list[tuple[object, ...]]:
    """Return what a version says of a shard's samples; `counted_alone`: of those that count, for want of the others."""
    columns = ("id", "row", "since", "outcome", "reasons")
    rows = zip(*(shard.samples[name].to_pylist() for name in columns), strict=True)
    if counted_alone:
        return [(i, outcome, tuple(reasons or ())) for i, _, since, outcome, reasons in rows if since]
    return [(i, row, since > 0, outcome, tuple(reasons or ())) for i, row, since, outcome, reasons in rows]


def _samples_of(decided: DecidedShard, file_of: Mapping[Outcome, str], number: int) -> pa.Table:
    """Return the rows of a shard in its segment."""
    entry, spans = decided.entry, decided.entry.shard.spans
    rows = decided.rows
    ends: list[Decided | None] = [decided.decided.get(sample.id) for sample, _ in rows]
    count = len(rows)
    columns: dict[str, list[object]] = {
        "id": [sample.id for sample, _ in rows],
        "row": [row for _, row in rows],
        "uri": [spans[sample.span].uri for sample, _ in rows],
        "etag": [spans[sample.span].etag for sample, _ in rows],
        "position": [sample.position for sample, _ in rows],
        "index": [sample.index for sample, _ in rows],
        "round": [entry.shard.round] * count,
        "shard": [entry.shard.id] * count,
        "plan": [entry.plan] * count,
        "place": [entry.position] * count,
        "since": [0 if end is None else end.since or number for end in ends],
        "outcome": [end and end.outcome for end in ends],
        "reasons": [end and end.reasons for end in ends],
        "made": [sample.outcome for sample, _ in rows],
        "made_reasons": [sample.reasons or None for sample, _ in rows],
        "file": [end and file_of[end.outcome] for end in ends],
        "phash": [decided.hashes.get(sample.id) for sample, _ in rows],
        "content": [sample.content or None for sample, _ in rows],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in SAMPLES], schema=SAMPLES)
