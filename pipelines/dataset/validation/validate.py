"""Validate a dataset from its files alone: nothing is lost, duplicated or damaged.

No count that a run wrote is trusted. The shards of the plan must match their ids and hold each row of an input version
once. Each commit must account for each sample of its shard once, in objects that hold it. The latest version must
follow from the commits. Each object that a commit or a version names is read in full (checks.py).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jointdit.errors import JointDiTError
from pipelines.dataset import card
from pipelines.dataset.decide import decide_again, standing_decisions
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.validation.carried import check_carried
from pipelines.dataset.validation.checks import Checked
from pipelines.dataset.validation.objects import Checking, check_objects
from pipelines.dataset.validation.partial import left_out, open_rows
from pipelines.dataset.validation.recount import CountedSample, recount
from pipelines.ledger.entries import OBJECT_FOLDERS, OUTCOMES, Commit, Job, PlannedShard, StoredObject, sha256
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.names import plan_file, version_object
from pipelines.ledger.versions import Version, read_outcomes, read_version, version_numbers
from pipelines.model.fingerprint import digest
from pipelines.plan.shards import id_of
from pipelines.records import RowKey
from pipelines.spec.job import load_spec
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.storage import Storage

MOST_PROBLEMS = 200  # reported for one dataset


@dataclass
class Validation:
    """The result of `jointdit validate`. `problems` is empty for an intact dataset."""

    output: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # untidy but harmless
    version: int | None = None
    counts: dict[str, int] = field(default_factory=dict)  # samples of the latest version
    left_out: int = 0  # planned samples that it leaves out, because it is partial
    files: int = 0
    bytes: int = 0
    images: int = 0
    pointclouds: int = 0


def validate(uri: str, quick: bool = False, how: Checking | None = None) -> Validation:
    """Validate a dataset.

    Args:
        quick: check the account and the sizes of the files from listings, and open none of them.
        how: the way in which files are read; by default on threads.

    Raises:
        StoreError: there is no job, or the store cannot be reached.
    """
    storage = Storage(uri)
    ledger = Ledger(storage)
    job = ledger.read_job()
    result = Validation(storage.uri)
    try:
        planned = ledger.planned()
    except JointDiTError as error:
        result.problems.append(str(error))
        return result
    result.problems += check_plan(job, planned)
    if result.problems:
        return result  # such a plan does not say what counts
    commits, unreadable = _read_commits(ledger, planned)
    result.problems += [*unreadable, *_check_commits(planned, commits), *_check_crashes(ledger, planned)]
    versions, unreadable = _read_versions(storage)
    result.problems += unreadable
    if versions:
        latest = versions[-1]
        result.version, result.counts, result.left_out = latest.number, dict(latest.counts), latest.left_out
        result.problems += _check_version(storage, planned, commits, latest)
        if not quick:
            result.problems += _check_ids(storage, latest)
        if later := sum(entry.plan not in latest.plans for entry in planned):
            result.notes.append(f"{later} shards were planned after version {latest.number} and are not part of it.")
    elif not result.problems:
        result.problems.append("no version is published: the job has not run to its end.")
    objects, contradictions = _objects_of(commits, versions)
    result.problems += contradictions
    how = how or Checking()
    checks = _check_sizes(storage, objects) if quick else check_objects(storage, load_spec(job.spec), objects, how)
    for stored, checked in checks:
        result.problems += checked.problems
        result.files += 1
        result.bytes += stored.bytes
        result.images += checked.images
        result.pointclouds += stored.kind == "points"
    result.notes += _orphans(storage, commits, versions)
    result.notes += [f"{name} is no file of the ledger and is ignored." for name in ledger.foreign_names()]
    del result.problems[MOST_PROBLEMS:]
    return result


def check_plan(job: Job, planned: Sequence[PlannedShard]) -> Iterator[str]:
    """Check that shards match their ids, plan files have no gap, and each row of an input version is planned once."""
    numbers = sorted({entry.plan for entry in planned})
    for number in sorted(set(range(1, numbers[-1] + 1 if numbers else 1)) - set(numbers)):
        yield f"{plan_file(number)} is missing."
    fingerprint, per_row = digest(job.fingerprint), int(job.resolved["input"]["samples_per_row"])
    spans: dict[tuple[str, int], list[tuple[int, int]]] = {}  # (uri, plan) -> rows
    versions: dict[str, list[tuple[str, int]]] = {}  # uri -> its input versions as they were planned
    for entry in planned:
        if entry.shard.id != id_of(entry, fingerprint, per_row):
            yield f"{plan_file(entry.plan)}: shard {entry.shard.id} is not what its id says."
        for span in entry.shard.spans:
            if entry.is_first:
                spans.setdefault((span.uri, entry.plan), []).append((span.start, span.stop))
                if (span.etag, entry.plan) not in (history := versions.setdefault(span.uri, [])):
                    history.append((span.etag, entry.plan))
            elif span.uri not in versions:
                yield f"{plan_file(entry.plan)}: shard {entry.shard.id} is of {span.uri}, which was not planned."
        for rows in entry.carried:
            spans.setdefault((rows.uri, entry.plan), []).extend(zip(rows.at, rows.at + rows.rows, strict=True))
    yield from check_carried(planned)
    for (uri, number), ranges in spans.items():
        at = 0
        for start, stop in sorted(ranges):
            if start != at:
                fault = "are in no shard" if start > at else "are in two shards"
                yield f"{plan_file(number)}: rows {min(at, start)} to {max(at, start)} of {uri} {fault}."
            at = max(at, stop)
    for uri, history in versions.items():
        for (etag, number), (later, again) in itertools.pairwise(history):
            if etag == later and again == number + 1:  # with a plan in between, it is a file that was restored
                yield f"{uri} is planned twice, in {plan_file(number)} and {plan_file(again)}."


def _read_commits(ledger: Ledger, planned: Iterable[PlannedShard]) -> tuple[dict[str, Commit], list[str]]:
    """Return (commits of planned shards, problems)."""
    commits: dict[str, Commit] = {}
    problems: list[str] = []
    known = {entry.shard.id for entry in planned}
    shards = sorted(ledger.committed())
    problems += [f"_commits/{s}.json commits a shard that no plan holds." for s in shards if s not in known]

    def read(shard: str) -> Commit | JointDiTError | None:
        try:
            return ledger.read_commit(shard)
        except JointDiTError as error:
            return error

    planned_shards = [shard for shard in shards if shard in known]
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for shard, found in zip(planned_shards, pool.map(read, planned_shards), strict=True):
            if isinstance(found, JointDiTError):
                problems.append(str(found))
            elif found is not None:
                commits[shard] = found
    return commits, problems


def _check_commits(planned: Iterable[PlannedShard], commits: Mapping[str, Commit]) -> Iterator[str]:
    """Check that each planned sample of a committed shard ends exactly once, in an object with enough rows."""
    owner: dict[str, str] = {}
    for entry in {entry.shard.id: entry for entry in planned}.values():
        commit, name = commits.get(entry.shard.id), f"shard {entry.shard.id}"
        if commit is None:
            continue
        if commit.shard != entry.shard.id:
            yield f"_commits/{entry.shard.id}.json is the commit of shard {commit.shard}."
        expected = {
            (number, position, index)
            for number, span in enumerate(entry.shard.spans)
            for position in range(span.start, span.stop)
            for index in entry.indices
        }
        actual = Counter((sample.span, sample.position, sample.index) for sample in commit.samples)
        lost, extra = len(expected - actual.keys()), sum((actual - Counter(expected)).values())
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
    """Check that crash records are intact and numbered without a gap, because isolation of rows depends on them."""
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


def _read_versions(storage: Storage) -> tuple[list[Version], list[str]]:
    """Return (published versions with intact outcomes, problems)."""
    versions: list[Version] = []
    problems: list[str] = []
    for number in version_numbers(storage):
        try:
            version = read_version(storage, number)
        except (JointDiTError, KeyError, TypeError) as error:
            problems.append(f"{version_object(number, 'version.json')} is damaged ({error})")
            continue
        described = {version.outcomes: version.outcomes_sha256} if version.outcomes else {}
        described |= {segment.path: segment.sha256 for segment in version.segments}
        described |= {segment.shards_path: segment.shards_sha256 for segment in version.segments}
        faults = [fault for path, digest in described.items() for fault in _fault_of(storage, path, digest)]
        if not faults:
            versions.append(version)
        elif number in version_numbers(storage):  # else it was pruned in the meantime
            problems += faults
    return versions, problems


def _fault_of(storage: Storage, path: str, digest: str) -> Iterator[str]:
    try:
        if sha256(storage.read_bytes(path)) != digest:
            yield f"{path} has another SHA-256 than version.json says."
    except FileNotFoundError:
        yield f"{path} is missing."


def _check_version(
    storage: Storage, planned: Sequence[PlannedShard], commits: Mapping[str, Commit], version: Version
) -> Iterator[str]:
    """Check that the outcomes are the samples that count, each id once, and that the files hold exactly them.

    A partial version is checked against the shards that it covers.
    """
    outcomes = read_outcomes(storage, version).select(["id", "outcome", "shard", "file"]).to_pylist()
    for identifier, count in Counter(row["id"] for row in outcomes).items():
        if count > 1:
            yield f"sample {identifier} occurs more than once in version {version.number}."
    counts = Counter(row["outcome"] for row in outcomes)
    if {outcome: counts[outcome] for outcome in OUTCOMES} != version.counts:
        yield f"version {version.number} counts {version.counts} and its outcomes hold {dict(counts)}."
    planned = [entry for entry in planned if entry.plan in version.plans]
    covered = set(version.content.ids.to_pylist()) if version.is_partial else None
    account = recount(planned, commits, covered)
    for entry in account.pending:
        yield f"shard {entry.shard.id}: {entry.samples} samples of version {version.number} have no commit."
    if not account.pending:
        waiting = set[RowKey]()
        if covered is not None and version.criteria.get("keep_best"):
            made = {shard: commit for shard, commit in commits.items() if shard in covered}
            made_samples = ((each.entry, each.sample) for each in recount(planned, made).samples)
            waiting = open_rows(version.spec, planned, covered, made_samples)
        yield from _compare_outcomes(storage, version, account.samples, commits, outcomes, waiting)
    expected = 0 if covered is None else left_out(planned, covered) + version.withheld
    if version.left_out != expected:
        yield f"version {version.number} says that it leaves out {version.left_out} samples, but these are {expected}."
    yield from _compare_files(version, outcomes)
    if not card.is_about(storage, version):
        yield f"README.md and stats.json are not those of version {version.number}: run the job again to rewrite them."


def _compare_outcomes(
    storage: Storage,
    version: Version,
    counted: Sequence[CountedSample],
    commits: Mapping[str, Commit],
    outcomes: Sequence[Mapping[str, Any]],
    waiting: Collection[RowKey],
) -> Iterator[str]:
    """Check that the version has the samples that count, each with the outcome of its commit or the criteria.

    Args:
        waiting: rows of which it decides nothing new.
    """
    try:
        stand = standing_decisions(storage, version)
        in_it = [c for c in counted if c.row not in waiting or stand.get((c.sample.id, c.entry.shard.id), (0,))[0]]
        decided = decide_again(storage, version, ((c.entry.shard.id, c.sample) for c in in_it), commits)
    except (JointDiTError, OSError, pa.ArrowException, KeyError) as error:
        yield f"what version {version.number} must contain cannot be determined ({type(error).__name__}: {error})."
        return
    if len(counted) - len(in_it) != version.withheld:
        counts = f"{len(counted) - len(in_it)} samples wait for others of their rows"
        yield f"{counts}, and version {version.number} says {version.withheld}."
    expected = Counter((sample.id, sample.outcome, sample.shard) for sample in decided)
    actual = Counter((row["id"], row["outcome"], row["shard"]) for row in outcomes)
    is_by_commits = not version.refilter and not Criteria.from_json(version.criteria).needs_all
    by = "in the commit" if is_by_commits else "by the stored scores"
    for identifier, outcome, shard in expected - actual:
        yield f"sample {identifier} is {outcome} {by} of shard {shard} and not so in version {version.number}."
    for identifier, outcome, shard in actual - expected:
        yield (
            f"sample {identifier} is {outcome} in version {version.number} and not so {by} of shard {shard}, "
            "if that counts."
        )


def _compare_files(version: Version, outcomes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Check that the files that the version names, which readers see, are those that its outcomes name."""
    named = Counter({(file.path, file.outcome, file.shard): file.rows for file in version.files})
    held = Counter((row["file"], row["outcome"], row["shard"]) for row in outcomes)
    for path, outcome, shard in (named - held) + (held - named):
        yield (
            f"version {version.number} names {path} for {named[path, outcome, shard]} {outcome} samples of shard "
            f"{shard}, its outcomes for {held[path, outcome, shard]}."
        )


def _check_ids(storage: Storage, version: Version) -> Iterator[str]:
    """Check that the tables of a version hold the samples that its outcomes say."""
    ids_by_file: dict[str, Counter[str]] = {file.path: Counter() for file in version.files}
    for row in read_outcomes(storage, version).select(["id", "file"]).to_pylist():
        ids_by_file.setdefault(row["file"], Counter())[row["id"]] += 1
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for problems in pool.map(lambda item: list(_compare_ids(storage, *item)), ids_by_file.items()):
            yield from problems


def _compare_ids(storage: Storage, path: str, expected: Counter[str]) -> Iterator[str]:
    try:
        with storage.open(path) as file:
            actual = Counter(pq.read_table(file, columns=["id"])["id"].to_pylist())
    except FileNotFoundError:
        return  # reported with the objects
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: its ids cannot be read ({type(error).__name__})."
        return
    for identifier in expected - actual:
        yield f"{path}: sample {identifier} is lost."
    for identifier in actual - expected:
        yield f"{path}: sample {identifier} is there and should not be."


def _objects_of(
    commits: Mapping[str, Commit], versions: Iterable[Version]
) -> tuple[dict[str, StoredObject], list[str]]:
    """Return (path -> object that commits or versions name, contradictions between them)."""
    objects = {stored.path: stored for commit in commits.values() for stored in commit.objects}
    problems = []
    for version in versions:
        for file in version.iter_files():
            table = StoredObject(file.path, file.bytes, file.sha256, file.rows, file.outcome)
            for stored in (table, *file.clouds):
                if objects.setdefault(stored.path, stored) != stored:
                    problems.append(f"version {version.number} and a commit say different things of {stored.path}.")
    return objects, problems


def _check_sizes(storage: Storage, objects: Mapping[str, StoredObject]) -> Iterator[tuple[StoredObject, Checked]]:
    """Check that each object is there with its size, from one listing of each folder."""
    sizes = {info.path: info.size for folder in OBJECT_FOLDERS for info in storage.list(folder)}
    for stored in objects.values():
        found = sizes.get(stored.path)
        if found is None:
            yield stored, Checked([f"{stored.path} is named by a commit and missing."])
        elif found != stored.bytes:
            yield stored, Checked([f"{stored.path} has {found} bytes, its commit says {stored.bytes}."])
        else:
            yield stored, Checked()


def _orphans(storage: Storage, commits: Mapping[str, Commit], versions: Iterable[Version]) -> Iterator[str]:
    """Note the objects of failed attempts. They are untidy, but readers of the version's files never see them."""
    named = {stored.path for commit in commits.values() for stored in commit.objects}
    named |= {path for version in versions for path in version.paths()}
    for folder in OBJECT_FOLDERS:
        orphans = [info for info in storage.list(folder) if info.path not in named]
        if orphans:
            size = sum(info.size for info in orphans)
            yield f"{folder}/ has {len(orphans)} objects ({size} bytes) that no commit names."
