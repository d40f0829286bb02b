"""Validate a dataset from its files alone: nothing is lost, duplicated or damaged.

No count that a run wrote is trusted. The shards of the plan must match their ids and hold each row of an input version
once. Each commit must account for each sample of its shard once, in objects that hold it. The latest version must
follow from the commits. Each object that a commit or a version names is read in full (checks.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import JointDiTError
from pipelines.dataset import card
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.settling import memory_for
from pipelines.dataset.validation.account import Account, Part, Tables, entries_in, ids_of
from pipelines.dataset.validation.checks import Checked, check_object
from pipelines.dataset.validation.content import Content, undetermined
from pipelines.dataset.validation.named import Named
from pipelines.dataset.validation.recount import Recount
from pipelines.ledger.entries import Job, PlannedShard, StoredObject, sha256
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.names import plan_file, version_object
from pipelines.ledger.versions import Version, read_version, version_numbers
from pipelines.model.fingerprint import digest
from pipelines.plan.shards import id_of
from pipelines.spec.job import JobSpec, load_spec
from pipelines.store.connections import PARALLEL_TABLES
from pipelines.store.joins import joins
from pipelines.store.shelf import Shelf
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
    files: int = 0
    bytes: int = 0
    images: int = 0
    pointclouds: int = 0


def validate(uri: str, quick: bool = False) -> Validation:
    """Validate a dataset.

    Args:
        quick: check the account and the sizes of the files from listings, and open none of them.

    Raises:
        StoreError: there is no job, or the store cannot be reached.
    """
    storage = Storage(uri)
    ledger = Ledger(storage)
    job = ledger.read_job()
    result = Validation(storage.uri)
    try:
        tables = ledger.plan_tables()
    except JointDiTError as error:
        result.problems.append(str(error))
        return result
    result.problems += check_plan(job, (entry for entries in entries_in(ledger, tables) for entry in entries))
    if result.problems:
        return result  # such a plan does not say what counts
    versions, damaged = _read_versions(storage)
    criteria, unknown = _criteria_of(versions[-1]) if versions else (Criteria(), [])
    with joins(memory_for(criteria)) as connection, Shelf[Part]() as parts:
        named = Named(connection, storage)
        if versions:
            latest = versions[-1]
            account = Account(ledger, tables, named, latest.plans, Recount(connection, tables, latest.plans))
            result.problems += [*account.read(parts), *_check_crashes(ledger, tables), *damaged]
            result.version, result.counts = latest.number, dict(latest.counts)
            content = Content(storage, latest, connection, criteria, quick, is_undetermined=bool(unknown))
            result.problems += [*unknown, *_check_version(content, account, parts)]
            if later := sum(len(table) for number, table in tables.items() if number not in latest.plans):
                note = f"{later} shards were planned after version {latest.number} and are not part of it."
                result.notes.append(note)
        else:
            account = Account(ledger, tables, named)
            result.problems += [*account.read(parts), *_check_crashes(ledger, tables), *damaged]
            if not result.problems:
                result.problems.append("no version is published: the job has not run to its end.")
        for version in versions:
            named.add_version(version)
        result.problems += named.contradictions()
        named.list_objects()
        result.files, result.bytes, result.pointclouds = named.sums()
        if quick:
            result.problems += itertools.islice(named.faults_of_sizes(), MOST_PROBLEMS)
        else:
            for _, checked in _check_objects(storage, load_spec(job.spec), named.objects()):
                result.problems += checked.problems
                result.images += checked.images
        result.notes += named.orphans()
    result.notes += [f"{name} is no file of the ledger and is ignored." for name in ledger.foreign_names()]
    del result.problems[MOST_PROBLEMS:]
    return result


def check_plan(job: Job, planned: Iterable[PlannedShard]) -> Iterator[str]:
    """Check that shards match their ids, plan files have no gap, and each row of an input version is planned once."""
    fingerprint, per_row = digest(job.fingerprint), int(job.resolved["input"]["samples_per_row"])
    numbers: set[int] = set()
    spans: dict[tuple[str, int], list[tuple[int, int]]] = {}  # (uri, plan) -> rows, adjacent ones joined
    versions: dict[str, list[tuple[str, int]]] = {}  # uri -> its input versions as they were planned
    for entry in planned:
        numbers.add(entry.plan)
        if entry.shard.id != id_of(entry, fingerprint, per_row):
            yield f"{plan_file(entry.plan)}: shard {entry.shard.id} is not what its id says."
        for span in entry.shard.spans:
            if entry.is_first:
                ranges = spans.setdefault((span.uri, entry.plan), [])
                start = ranges.pop()[0] if ranges and ranges[-1][1] == span.start else span.start
                ranges.append((start, span.stop))
                if (span.etag, entry.plan) not in (history := versions.setdefault(span.uri, [])):
                    history.append((span.etag, entry.plan))
            elif span.uri not in versions:
                yield f"{plan_file(entry.plan)}: shard {entry.shard.id} is of {span.uri}, which was not planned."
    for number in sorted(set(range(1, max(numbers, default=0) + 1)) - numbers):
        yield f"{plan_file(number)} is missing."
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


def _check_crashes(ledger: Ledger, tables: Tables) -> Iterator[str]:
    """Check that crash records are intact and numbered without a gap, because isolation of rows depends on them."""
    crashed = sorted(ledger.shards_with_crashes())
    known = set(ids_of(tables).filter(pc.is_in(ids_of(tables), pa.array(crashed, pa.string()))).to_pylist())
    for shard in crashed:
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


def _criteria_of(version: Version) -> tuple[Criteria, list[str]]:
    """Return (the criteria of a version, problems)."""
    try:
        return Criteria.from_json(version.criteria), []
    except (JointDiTError, ValueError) as error:
        return Criteria(), [undetermined(version, error)]


def _check_version(content: Content, account: Account, parts: Shelf[Part]) -> Iterator[str]:
    """Check that the outcomes are the samples that count, each id once, and that the files hold exactly them."""
    storage, version = content.storage, content.version
    pending, recount = account.pending(), account.recount
    for entry in pending:
        yield f"shard {entry.shard.id}: {entry.samples} samples of version {version.number} have no commit."
    if recount is not None and not pending:
        recount.finish(part.samples for part in parts)
    yield from content.check(lambda: parts, None if pending else recount)
    if not card.is_about(storage, version):
        yield f"README.md and stats.json are not those of version {version.number}: run the job again to rewrite them."


def _check_objects(
    storage: Storage, spec: JobSpec, objects: Mapping[str, StoredObject]
) -> Iterator[tuple[StoredObject, Checked]]:
    """Read and check each object in full."""
    pointclouds = {stored.path for stored in objects.values() if stored.kind == "points"}
    with ThreadPoolExecutor(PARALLEL_TABLES) as pool:
        checks = pool.map(lambda stored: check_object(storage, spec, stored, pointclouds), objects.values())
        yield from zip(objects.values(), checks, strict=True)
