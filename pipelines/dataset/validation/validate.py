"""The whole account again, from the files alone: nothing lost, nothing doubled, nothing damaged.

It trusts no count that a run wrote down. The plan's shards must be what their ids say and hold each row of an input
version once; each commit must end each of its shard's samples once, in objects that hold them; the latest version must
be what the commits say, and each object that a commit or a version names is read whole (object_checks.py).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jointdit.errors import JointDiTError
from pipelines.dataset import card
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.publish import decide_again
from pipelines.dataset.validation.checks import check_object
from pipelines.dataset.validation.recount import recount
from pipelines.ledger.counting import CountedSample
from pipelines.ledger.entries import FOLDERS, OUTCOMES, Commit, Job, PlannedShard, StoredObject, sha256
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version, read_outcomes, read_version, version_numbers
from pipelines.model.fingerprint import digest
from pipelines.plan.shards import id_of
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage

READERS = 4  # tables at once; each is held in memory whole
MOST_PROBLEMS = 200  # more of one dataset help nobody


@dataclass
class Validation:
    """What `jointdit validate` found. `problems` is empty for a dataset that is whole."""

    output: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is untidy and harms nothing
    version: int | None = None
    counts: dict[str, int] = field(default_factory=dict)  # samples of the latest version
    files: int = 0
    bytes: int = 0
    images: int = 0
    pointclouds: int = 0


def validate(uri: str) -> Validation:
    """Recount a dataset. Raises StoreError where there is no job at all, or the store cannot be reached."""
    storage = Storage(uri)
    ledger = Ledger(storage)
    job = ledger.read_job()
    found = Validation(storage.uri)
    try:
        planned = ledger.planned()
    except JointDiTError as error:
        found.problems.append(str(error))
        return found
    found.problems += check_plan(job, planned)
    if found.problems:
        return found  # what counts cannot be told from such a plan
    commits = _read_commits(ledger, planned, found)
    found.problems += _check_commits(planned, commits)
    found.problems += _check_crashes(ledger, planned)
    versions = _read_versions(storage, found)
    if versions:
        latest = versions[-1]
        found.version, found.counts = latest.number, dict(latest.counts)
        _check_latest(storage, planned, commits, latest, found)
    elif not found.problems:
        found.problems.append("no version is published: the job has not run to its end.")
    _check_objects(storage, job, commits, versions, found)
    _note_orphans(storage, commits, versions, found)
    found.notes += [f"{name} is no file of the ledger: it is passed over." for name in ledger.foreign_names()]
    del found.problems[MOST_PROBLEMS:]
    return found


def check_plan(job: Job, planned: Sequence[PlannedShard]) -> Iterator[str]:
    """Shards have the ids they must have, plan files no gap, and each row of an input version is planned once."""
    numbers = sorted({entry.plan for entry in planned})
    for number in sorted(set(range(1, numbers[-1] + 1 if numbers else 1)) - set(numbers)):
        yield f"_plan/{number:06d}.parquet is missing."
    fingerprint, per_row = digest(job.fingerprint), int(job.resolved["input"]["samples_per_row"])
    spans: dict[tuple[str, int], list[tuple[int, int]]] = {}  # (uri, plan) -> rows
    versions: dict[str, list[tuple[str, int]]] = {}  # uri -> its input versions as they were planned
    for entry in planned:
        if entry.shard.id != id_of(entry, fingerprint, per_row):
            yield f"_plan/{entry.plan:06d}.parquet: shard {entry.shard.id} is not what its id says."
        for span in entry.shard.spans:
            if entry.is_first:
                spans.setdefault((span.uri, entry.plan), []).append((span.start, span.stop))
                if (span.etag, entry.plan) not in (history := versions.setdefault(span.uri, [])):
                    history.append((span.etag, entry.plan))
            elif span.uri not in versions:
                yield f"_plan/{entry.plan:06d}.parquet: shard {entry.shard.id} is of {span.uri}, which was not planned."
    for (uri, number), ranges in spans.items():
        at = 0
        for start, stop in sorted(ranges):
            if start != at:
                what = "are in no shard" if start > at else "are in two shards"
                yield f"_plan/{number:06d}.parquet: rows {min(at, start)} to {max(at, start)} of {uri} {what}."
            at = max(at, stop)
    for uri, history in versions.items():
        for (etag, number), (later, again) in itertools.pairwise(history):
            if etag == later and again == number + 1:  # after a plan in between, it is a file that is back
                yield f"{uri} is planned twice, in _plan/{number:06d}.parquet and _plan/{again:06d}.parquet."


def _read_commits(ledger: Ledger, planned: Iterable[PlannedShard], found: Validation) -> dict[str, Commit]:
    commits: dict[str, Commit] = {}
    known = {entry.shard.id for entry in planned}
    for shard in sorted(ledger.committed()):
        if shard not in known:
            found.problems.append(f"_commits/{shard}.json commits a shard that no plan holds.")
            continue
        try:
            commit = ledger.read_commit(shard)
        except JointDiTError as error:
            found.problems.append(str(error))
            continue
        if commit is not None:
            commits[shard] = commit
    return commits


def _check_commits(planned: Iterable[PlannedShard], commits: Mapping[str, Commit]) -> Iterator[str]:
    """Each planned sample of a committed shard ends exactly once, and in an object that has room for it."""
    owner: dict[str, str] = {}
    for entry in {entry.shard.id: entry for entry in planned}.values():
        commit, name = commits.get(entry.shard.id), f"shard {entry.shard.id}"
        if commit is None:
            continue
        if commit.shard != entry.shard.id:
            yield f"_commits/{entry.shard.id}.json is the commit of shard {commit.shard}."
        wanted = {
            (number, position, index)
            for number, span in enumerate(entry.shard.spans)
            for position in range(span.start, span.stop)
            for index in entry.indices
        }
        have = Counter((sample.span, sample.position, sample.index) for sample in commit.samples)
        lost, extra = len(wanted - have.keys()), sum((have - Counter(wanted)).values())
        if lost:
            yield f"{name}: {lost} of {entry.samples} planned samples are lost."
        if extra:
            yield f"{name}: {extra} samples more than its {entry.samples} planned ones."
        rows = Counter[str]()
        for stored in commit.objects:
            if stored.kind == "table":
                rows[stored.outcome] += stored.rows
            if owner.setdefault(stored.path, entry.shard.id) != entry.shard.id or entry.shard.id not in stored.path:
                yield f"{name} names {stored.path}, which is of another shard."
        for outcome in OUTCOMES:
            if rows[outcome] != commit.counts[outcome]:
                yield f"{name}: {commit.counts[outcome]} samples are {outcome}, and its tables hold {rows[outcome]}."


def _check_crashes(ledger: Ledger, planned: Iterable[PlannedShard]) -> Iterator[str]:
    """Crash records are whole and numbered without a gap: what isolates a shard's rows is read from them."""
    known = {entry.shard.id for entry in planned}
    for shard in sorted(ledger.shards_with_crashes()):
        if shard not in known:
            yield f"_crashes/{shard} is of a shard that no plan holds."
        try:
            records = ledger.crashes(shard)
        except (JointDiTError, ValueError) as error:
            yield f"_crashes/{shard} is damaged ({error})."
            continue
        if ledger.crash_numbers(shard) != list(range(1, len(records) + 1)):
            yield f"_crashes/{shard}: a record between the first and the last is missing."


def _read_versions(storage: Storage, found: Validation) -> list[Version]:
    """The published versions whose outcomes are as they were written."""
    versions: list[Version] = []
    for number in version_numbers(storage):
        try:
            version = read_version(storage, number)
        except (JointDiTError, KeyError, TypeError) as error:
            found.problems.append(f"_versions/{number:06d}/version.json is damaged ({error})")
            continue
        try:
            intact = sha256(storage.read_bytes(version.outcomes)) == version.outcomes_sha256
        except FileNotFoundError:
            if number in version_numbers(storage):  # else it was pruned since
                found.problems.append(f"{version.outcomes} is missing.")
            continue
        if intact:
            versions.append(version)
        else:
            found.problems.append(f"{version.outcomes} has another SHA-256 than version.json says.")
    return versions


def _check_latest(
    storage: Storage,
    planned: Sequence[PlannedShard],
    commits: Mapping[str, Commit],
    version: Version,
    found: Validation,
) -> None:
    """The version's outcomes are the committed samples that count, each id once, and its files hold exactly them."""
    outcomes = read_outcomes(storage, version).select(["id", "outcome", "shard", "file"]).to_pylist()
    doubled = [identifier for identifier, count in Counter(row["id"] for row in outcomes).items() if count > 1]
    found.problems += [
        f"sample {identifier} occurs more than once in version {version.number}." for identifier in doubled
    ]
    counted = Counter(row["outcome"] for row in outcomes)
    if {outcome: counted[outcome] for outcome in OUTCOMES} != version.counts:
        found.problems.append(
            f"version {version.number} counts {version.counts} and its outcomes hold {dict(counted)}."
        )
    in_plans = [entry for entry in planned if entry.plan in version.plans]
    account = recount(in_plans, commits)
    for entry in account.pending:
        found.problems.append(
            f"shard {entry.shard.id}: {entry.samples} samples of version {version.number} have no commit."
        )
    if not account.pending:
        found.problems += _outcomes_differ(storage, version, account.samples, commits, outcomes)
    found.problems += _files_differ(version, outcomes)
    if not card.is_about(storage, version):
        found.problems.append(
            f"README.md and stats.json are not those of version {version.number}: run the job again to write them anew."
        )
    by_file: dict[str, Counter[str]] = {file.path: Counter() for file in version.files}
    for row in outcomes:
        by_file.setdefault(row["file"], Counter())[row["id"]] += 1
    for path, ids in by_file.items():
        found.problems += _ids_differ(storage, path, ids)
    later = [entry for entry in planned if entry.plan not in version.plans]
    if later:
        found.notes.append(f"{len(later)} shards were planned after version {version.number} and are not part of it.")


def _outcomes_differ(
    storage: Storage,
    version: Version,
    counted: Sequence[CountedSample],
    commits: Mapping[str, Commit],
    outcomes: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    """The version's samples are those that count, and each ended where its commit or the version's criteria put it."""
    try:
        decided = decide_again(storage, version, counted, commits)
    except (JointDiTError, OSError, pa.ArrowException, KeyError) as error:
        yield f"what version {version.number} must say cannot be found out ({type(error).__name__}: {error})."
        return
    wanted = Counter((each.key[0], each.outcome, each.key[1]) for each in decided)
    have = Counter((row["id"], row["outcome"], row["shard"]) for row in outcomes)
    is_by_commits = not version.refilter and not Criteria.from_json(version.criteria).needs_all
    by = "in the commit" if is_by_commits else "by the stored scores"
    for i, o, s in wanted - have:
        yield f"sample {i} is {o} {by} of shard {s} and not so in version {version.number}."
    for i, o, s in have - wanted:
        yield f"sample {i} is {o} in version {version.number} and not so {by} of shard {s}, if that counts."


def _files_differ(version: Version, outcomes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The files that the version names, which is what readers see, are those in which its samples are."""
    named = Counter({(file.path, file.outcome, file.shard): file.rows for file in version.files})
    held = Counter((row["file"], row["outcome"], row["shard"]) for row in outcomes)
    for path, outcome, shard in (named - held) + (held - named):
        yield (
            f"version {version.number} names {path} for {named[path, outcome, shard]} {outcome} samples of shard "
            f"{shard}, its outcomes for {held[path, outcome, shard]}."
        )


def _ids_differ(storage: Storage, path: str, wanted: Counter[str]) -> Iterator[str]:
    try:
        with storage.open(path) as file:
            have = Counter(pq.read_table(file, columns=["id"])["id"].to_pylist())
    except FileNotFoundError:
        return  # reported with the objects
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: its ids cannot be read ({type(error).__name__})."
        return
    for identifier in wanted - have:
        yield f"{path}: sample {identifier} is lost."
    for identifier in have - wanted:
        yield f"{path}: sample {identifier} is there and should not be."


def _check_objects(
    storage: Storage, job: Job, commits: Mapping[str, Commit], versions: Iterable[Version], found: Validation
) -> None:
    """Each object that a commit or any version names, read whole."""
    spec = load_spec(job.spec)
    objects = {stored.path: stored for commit in commits.values() for stored in commit.objects}
    for version in versions:
        for file in version.files:
            stored = StoredObject(file.path, file.bytes, file.sha256, file.rows, file.outcome)
            for each in (stored, *file.clouds):
                if objects.setdefault(each.path, each) != each:
                    found.problems.append(f"version {version.number} and a commit say different things of {each.path}.")
    pointclouds = {stored.path for stored in objects.values() if stored.kind == "points"}
    with ThreadPoolExecutor(READERS) as pool:
        checks = pool.map(lambda stored: check_object(storage, spec, stored, pointclouds), objects.values())
        for stored, checked in zip(objects.values(), checks, strict=True):
            found.problems += checked.problems
            found.files += 1
            found.bytes += stored.bytes
            found.images += checked.images
            found.pointclouds += stored.kind == "points"


def _note_orphans(
    storage: Storage, commits: Mapping[str, Commit], versions: Iterable[Version], found: Validation
) -> None:
    """Objects of attempts that lost or died: untidy, and no harm to anybody who reads the version's files."""
    named = {stored.path for commit in commits.values() for stored in commit.objects}
    named |= {path for version in versions for path in version.paths}
    for folder in (*FOLDERS.values(), "pointclouds"):
        orphans = [each for each in storage.list(folder) if each.path not in named]
        if orphans:
            size = sum(each.size for each in orphans)
            found.notes.append(f"{folder}/ has {len(orphans)} objects ({size} bytes) that no commit names.")
