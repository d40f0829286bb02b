"""The published versions of a dataset, and the differences between two of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import PermanentError
from pipelines.ledger.entries import OUTCOMES
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version, outcome_tables, read_version, version_numbers
from pipelines.store.storage import Storage


@dataclass(frozen=True)
class Change:
    """A sample about which two versions differ. `before` or `after` is None where that version lacks the sample."""

    id: str
    before: str | None
    after: str | None
    reasons: tuple[str, ...] = ()  # why the newer version rejects it


@dataclass(frozen=True)
class Difference:
    """What changed between two versions, in the order of the newer one's plan, then of the older one's."""

    output: str
    first: Version
    second: Version
    added: tuple[Change, ...]
    gone: tuple[Change, ...]
    changed: tuple[Change, ...]  # another outcome
    made_again: tuple[Change, ...]  # the same outcome, from another shard: its input changed, or it was retried
    same: int
    reasons: dict[str, int]  # filter -> how many more samples it rejects in the second version


def list_versions(uri: str) -> list[Version]:
    """Return all published versions, in order. Raises StoreError where there is no job."""
    storage = Storage(uri)
    Ledger(storage).read_job()
    return [read_version(storage, number) for number in version_numbers(storage)]


def compare(uri: str, first: int, second: int) -> Difference:
    """Compare version `first` with version `second`.

    Raises:
        PermanentError: a version does not exist. The message names those that do.
    """
    storage = Storage(uri)
    Ledger(storage).read_job()
    versions = [require_version(storage, number) for number in (first, second)]
    shared = _shared_shards(*versions)
    before, after = (_samples(storage, version, shared) for version in versions)
    added, changed, made_again = [], [], []
    same = sum(versions[1].counts.values()) - len(after)
    for identifier, row in after.items():
        old = before.get(identifier)
        change = Change(identifier, old["outcome"] if old else None, row["outcome"], tuple(row["reasons"] or ()))
        if old is None:
            added.append(change)
        elif old["outcome"] != row["outcome"]:
            changed.append(change)
        elif old["shard"] != row["shard"]:
            made_again.append(change)
        else:
            same += 1
    gone = [Change(identifier, row["outcome"], None) for identifier, row in before.items() if identifier not in after]
    reasons = Counter(versions[1].reasons)
    reasons.subtract(versions[0].reasons)
    return Difference(
        output=storage.uri,
        first=versions[0],
        second=versions[1],
        added=tuple(added),
        gone=tuple(gone),
        changed=tuple(changed),
        made_again=tuple(made_again),
        same=same,
        reasons={kind: count for kind, count in sorted(reasons.items()) if count},
    )


def _shared_shards(first: Version, second: Version) -> set[str]:
    """Return the shards that two versions have from the same segments, so that nothing about them differs."""
    if not (first.has_segments and second.has_segments):
        return set()
    places = (
        {(shard, segment.path) for segment, shards in version.content.shards for shard in shards["shard"].to_pylist()}
        for version in (first, second)
    )
    return {shard for shard, _ in set.intersection(*places)}


def _samples(storage: Storage, version: Version, without: set[str]) -> dict[str, dict[str, Any]]:
    """Return the samples of all shards but some, by id."""
    chosen = pa.array(sorted(without), pa.string())
    return {
        row["id"]: row
        for table in outcome_tables(storage, version, COLUMNS)
        for row in table.filter(pc.invert(pc.is_in(table["shard"], chosen))).to_pylist()
    }


COLUMNS = ["id", "outcome", "shard", "reasons"]


def tally(changes: tuple[Change, ...]) -> dict[str, int]:
    """Count changes by kind: `kept`, or `quarantined -> kept`."""
    names = [" -> ".join(dict.fromkeys(filter(None, (change.before, change.after)))) for change in changes]
    order = [*OUTCOMES, *(f"{before} -> {after}" for before in OUTCOMES for after in OUTCOMES)]
    counts = Counter(names)
    return {name: counts[name] for name in order if counts[name]}


def require_version(storage: Storage, number: int) -> Version:
    """Return a published version. Raises PermanentError where it does not exist; the message names those that do."""
    numbers = version_numbers(storage)
    if number not in numbers:
        names = ", ".join(map(str, numbers)) or "none"
        raise PermanentError(f"{storage.uri} has no version {number}: it has {names}.")
    return read_version(storage, number)
