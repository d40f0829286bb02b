"""Validate a dataset from its files alone: nothing is lost, duplicated or damaged.

No count that a run wrote is trusted. The shards of the plan must match their ids and hold each row of an input version
once. Each commit must account for each sample of its shard once, in objects that hold it. The latest version must
follow from the commits. Each object that a commit or a version names is read in full (checks.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import JointDiTError
from pipelines.dataset import card
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.settling import memory_for
from pipelines.dataset.validation.account import Account
from pipelines.dataset.validation.carried import check_carried
from pipelines.dataset.validation.content import Content, undetermined
from pipelines.dataset.validation.named import Named
from pipelines.dataset.validation.objects import Checking, check_objects
from pipelines.dataset.validation.parts import Part, ids_of
from pipelines.dataset.validation.recount import Recount
from pipelines.dataset.validation.scope import Scope, Tables, entries_in
from pipelines.dataset.validation.waiting import Waiting
from pipelines.ledger.carried import CarriedRows
from pipelines.ledger.entries import Job, PlannedShard, sha256
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.names import plan_file, version_object
from pipelines.ledger.versions import Version, read_version, version_numbers
from pipelines.model.fingerprint import digest
from pipelines.plan.shards import id_of
from pipelines.spec.job import load_spec
from pipelines.store.joins import BESIDE_OBJECTS, joins
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
        tables = ledger.plan_tables()
    except JointDiTError as error:
        result.problems.append(str(error))
        return result
    result.problems += check_plan(job, (entry for entries in entries_in(ledger, tables) for entry in entries))
    if result.problems:
        return result  # such a plan does not say what counts
    versions, damaged = _read_versions(storage)
    criteria, unknown = _criteria_of(versions[-1]) if versions else (Criteria(), [])
    with ExitStack() as stack:
        connection, parts = stack.enter_context(joins(memory_for(criteria))), stack.enter_context(Shelf[Part]())
        named = Named(connection, storage)
        if versions:
            latest = versions[-1]
            scope = _scope_of(ledger, tables, latest)
            waiting = None
            if latest.is_partial and criteria.keep_best is not None:
                samples = stack.enter_context(Shelf[pa.Table]())
                waiting = Waiting(stack.enter_context(joins(BESIDE_OBJECTS)), samples, scope, latest.spec)
            account = Account(ledger, tables, named, scope, Recount(connection, scope.counted), waiting)
            result.problems += [*account.read(parts), *_check_crashes(ledger, tables), *damaged]
            result.version, result.counts, result.left_out = latest.number, dict(latest.counts), latest.left_out
            is_undetermined = bool(unknown)
            content = Content(storage, latest, connection, criteria, quick, is_undetermined, waiting)
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
            for _, checked in check_objects(storage, load_spec(job.spec), named.objects(), how or Checking()):
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
    carried: list[tuple[int, CarriedRows]] = []
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
        carried += ((entry.plan, rows) for rows in entry.carried)
    for number in sorted(set(range(1, max(numbers, default=0) + 1)) - numbers):
        yield f"{plan_file(number)} is missing."
    yield from check_carried(carried, spans, versions)
    for number, rows in carried:
        spans.setdefault((rows.uri, number), []).extend(zip(rows.at, rows.at + rows.rows, strict=True))
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


def _scope_of(ledger: Ledger, tables: Tables, version: Version) -> Scope:
    covered = frozenset(version.content.ids.to_pylist()) if version.is_partial else None
    return Scope.of(ledger, {number: table for number, table in tables.items() if number in version.plans}, covered)


def _check_version(content: Content, account: Account, parts: Shelf[Part]) -> Iterator[str]:
    """Check that the outcomes are the samples that count, each id once, and that the files hold exactly them.

    A partial version is checked against the shards that it covers.
    """
    storage, version = content.storage, content.version
    pending, recount, scope = account.pending(), account.recount, account.scope
    for entry in pending:
        yield f"shard {entry.shard.id}: {entry.samples} samples of version {version.number} have no commit."
    if recount is not None and not pending:
        recount.finish(part.samples for part in parts)
        if account.waiting is not None:
            account.waiting.finish()
    yield from content.check(lambda: parts, None if pending else recount)
    expected = version.withheld + scope.left_out() if version.is_partial and scope is not None else 0
    if version.left_out != expected:
        yield f"version {version.number} says that it leaves out {version.left_out} samples, but these are {expected}."
    if not card.is_about(storage, version):
        yield f"README.md and stats.json are not those of version {version.number}: run the job again to rewrite them."
