"""Named faults to plant in the engine, which the histories must find.

A mutant is a function without arguments that patches modules of the engine in this process, and so in its forks.
`python -m tests.chaos.histories --mutant NAME` plays histories with it. Each mutant disables a rule of the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pipelines.dataset.garbage
import pipelines.dataset.publish
import pipelines.dataset.refilter
import pipelines.ledger.counting
import pipelines.ledger.versions
import pipelines.plan.propose
from pipelines.store.storage import AlreadyExists


def lose_a_sample() -> None:
    """Publish leaves out the last sample if there are more than two."""
    counted = pipelines.ledger.counting.Counting.counted

    def without_last(self: Any, *args: Any, **kwargs: Any) -> Any:
        samples = list(counted(self, *args, **kwargs))
        return iter(samples[:-1] if len(samples) > 2 else samples)

    pipelines.ledger.counting.Counting.counted = without_last  # type: ignore[method-assign]


def forget_decisions() -> None:
    """Publish ignores the decisions of the previous version."""
    pipelines.dataset.publish.verdicts = lambda *_: {}


def list_versions_twice() -> None:
    """Garbage collection uses one listing for named objects and a later one for version numbers."""

    def versions(storage: Any) -> Any:
        listing = pipelines.ledger.versions.version_listing(storage)
        named = [pipelines.ledger.versions.read_version(storage, number) for number in listing.retained]
        return set(pipelines.ledger.versions.version_listing(storage).published), named

    pipelines.dataset.garbage._versions = versions


def borrow_from_older_versions() -> None:
    """Publish reuses tables and decisions of any retained version without a copy."""
    before = pipelines.dataset.publish._before

    def before_of_all(latest: Any, table: Any) -> Any:
        state = before(latest, table)
        storage = storages[-1]
        numbers = pipelines.ledger.versions.version_numbers(storage)
        versions = [pipelines.ledger.versions.read_version(storage, number) for number in numbers]
        known = {(file.shard, file.sha256): file.path for version in versions for file in version.files}
        return dataclasses.replace(state, known={**known, **state.known})

    storages: list[Any] = []
    following = pipelines.dataset.publish._next_version

    def next_version(storage: Any, *args: Any) -> Any:
        storages.append(storage)
        return following(storage, *args)

    pipelines.dataset.publish._before = before_of_all
    pipelines.dataset.publish._next_version = next_version
    pipelines.dataset.publish._held_outcomes = lambda storage, attempt, latest, held: held.outcomes if held else ""


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


def share_default_ids() -> None:
    """Two files with the same relative path give their rows the same default ids."""
    pipelines.plan.propose.with_distinct_paths = lambda listed, planned: listed


def ignore_moves() -> None:
    """A file that was moved before it was read counts under both names."""
    pipelines.plan.propose.unread_moves = lambda *_: {}


def ignore_restored_files() -> None:
    """A restored file keeps the text of the file that replaced it."""
    pipelines.plan.propose.restored_files = lambda *_: []


MUTANTS: dict[str, Callable[[], None]] = {
    "lose-a-sample": lose_a_sample,
    "forget-decisions": forget_decisions,
    "list-versions-twice": list_versions_twice,
    "borrow-from-older-versions": borrow_from_older_versions,
    "skip-taken-numbers": skip_taken_numbers,
    "read-ids-count-alone": read_ids_count_alone,
    "share-default-ids": share_default_ids,
    "ignore-moves": ignore_moves,
    "ignore-restored-files": ignore_restored_files,
}
