"""Named faults to plant in the engine, which the histories must find.

A mutant is a function without arguments that patches modules of the engine in this process, and so in its forks.
`python -m tests.chaos.histories --mutant NAME` plays histories with it. Each mutant disables a rule of the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pyarrow as pa

import pipelines.dataset.decide
import pipelines.dataset.garbage
import pipelines.dataset.publish
import pipelines.dataset.refilter
import pipelines.dataset.tables
import pipelines.ledger.basis
import pipelines.ledger.before
import pipelines.ledger.changes
import pipelines.ledger.counting
import pipelines.ledger.together
import pipelines.ledger.versions
import pipelines.plan.carry
import pipelines.plan.propose
import pipelines.stages.readers
from pipelines.store.storage import AlreadyExists


def lose_a_sample() -> None:
    """Publish leaves out the last sample of each file if there are more than two."""
    decided = pipelines.dataset.decide.with_standing

    def without_last(*args: Any) -> Any:
        shards = decided(*args)
        for shard in shards:
            if len(shard.decided) > 2:
                shard.decided.popitem()
        return shards

    pipelines.dataset.decide.with_standing = without_last


def forget_decisions() -> None:
    """Publish ignores the decisions of the previous version."""
    pipelines.dataset.decide.decisions_in = lambda _: []


def list_versions_twice() -> None:
    """Garbage collection uses one listing for named objects and a later one for version numbers."""

    def versions(storage: Any) -> Any:
        listing = pipelines.ledger.versions.version_listing(storage)
        named = [pipelines.ledger.versions.read_version(storage, number) for number in listing.retained]
        return set(pipelines.ledger.versions.version_listing(storage).published), named

    pipelines.dataset.garbage._versions = versions


def borrow_from_older_versions() -> None:
    """Publish reuses tables and segments of any retained version without a copy."""
    write = pipelines.dataset.tables.ShardTables.__init__

    def borrowing(self: Any, storage: Any, attempt: Any, shard: Any, borrowed: Any, points: Any) -> None:
        listing = pipelines.ledger.versions.version_listing(storage)
        files = [
            file
            for number in listing.retained
            for file in pipelines.ledger.versions.read_version(storage, number).files
            if file.shard == shard.commit.shard
        ]
        write(self, storage, attempt, shard, {**{file.sha256: file.path for file in files}, **borrowed}, points)

    pipelines.dataset.tables.ShardTables.__init__ = borrowing  # type: ignore[method-assign]


def count_planned_versions_in_partial_ones() -> None:
    """A partial version has of each file the version that was planned last, although it is not whole."""
    versions = pipelines.ledger.basis.committed_basis

    def planned(tables: Any, retries: Any, committed: Any) -> Any:
        basis = versions(tables, retries, committed)
        return dataclasses.replace(basis, versions=pipelines.ledger.basis.versions_of(tables))

    pipelines.ledger.changes.committed_basis = planned


def decide_rows_that_wait() -> None:
    """A partial version chooses the best of a row before all its samples are made."""
    pipelines.dataset.publish.open_rows = lambda *_: set()


def forget_withheld_samples() -> None:
    """A version after a partial one does not look at samples that it withheld."""
    pipelines.ledger.before.Before.waiting = pa.array([], pa.string())  # type: ignore[assignment]


def skip_taken_numbers() -> None:
    """A publisher whose version number is taken publishes its decisions under the next number."""

    def publish_decision(storage: Any, ledger: Any, decide: Any) -> Any:
        latest = pipelines.ledger.versions.read_latest(storage)
        version, is_new = pipelines.dataset.publish._next_version(storage, ledger, latest, decide)
        while is_new:
            try:
                storage.create_bytes(f"_versions/{version.number:06d}/version.json", version.to_bytes())
                break
            except AlreadyExists:
                version = dataclasses.replace(version, number=version.number + 1)
        return version, is_new

    pipelines.dataset.publish.publish_decision = publish_decision
    pipelines.dataset.refilter.publish_decision = publish_decision


def read_ids_count_alone() -> None:
    """Rows are identified by the recorded id, also of attempts that could not read the row."""
    pipelines.ledger.counting.Counting._read_ids = lambda *_: {}  # type: ignore[method-assign]
    name_rows = pipelines.ledger.together._Judge.name_rows

    def without_names(judge: Any) -> None:
        name_rows(judge)
        judge._run("delete from names")

    pipelines.ledger.together._Judge.name_rows = without_names  # type: ignore[method-assign]


def share_default_ids() -> None:
    """Two files with the same relative path give their rows the same default ids."""
    pipelines.plan.propose.with_distinct_paths = lambda listed, planned: listed


def ignore_moves() -> None:
    """A file that was moved before it was read counts under both names."""
    pipelines.plan.propose.unread_moves = lambda *_: {}


def ignore_restored_files() -> None:
    """A restored file keeps the text of the file that replaced it."""
    pipelines.plan.propose.restored_files = lambda *_: []


def make_again() -> None:
    """No row of a changed file is carried."""
    match = pipelines.plan.carry.match_rows

    def nothing(made: Any, new: Any, count: int) -> Any:
        return match((), new, count)

    pipelines.plan.carry.match_rows = nothing


def ignore_contents() -> None:
    """All rows of a file without ids have the same content."""
    pipelines.stages.readers.content_of = lambda raw, *_: "" if raw.error else "0" * 32


def reuse_default_ids() -> None:
    """A changed row has the default id that another text had in its place."""
    pipelines.plan.carry.ChangedFiles.with_unused_ids = lambda _, spans: tuple(spans)  # type: ignore[method-assign]


def forget_carried_rows() -> None:
    """Rows of an earlier version of a file never count."""
    versions = pipelines.ledger.counting.InputVersions
    versions.has_row = lambda self, entry, span, _: self._is_latest(entry, span)  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "lose-a-sample": lose_a_sample,
    "forget-decisions": forget_decisions,
    "list-versions-twice": list_versions_twice,
    "borrow-from-older-versions": borrow_from_older_versions,
    "count-planned-versions-in-partial-ones": count_planned_versions_in_partial_ones,
    "decide-rows-that-wait": decide_rows_that_wait,
    "forget-withheld-samples": forget_withheld_samples,
    "skip-taken-numbers": skip_taken_numbers,
    "read-ids-count-alone": read_ids_count_alone,
    "share-default-ids": share_default_ids,
    "ignore-moves": ignore_moves,
    "ignore-restored-files": ignore_restored_files,
    "make-again": make_again,
    "ignore-contents": ignore_contents,
    "reuse-default-ids": reuse_default_ids,
    "forget-carried-rows": forget_carried_rows,
}
