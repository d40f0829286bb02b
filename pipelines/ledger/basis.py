"""The basis of counting: which planned version of each input file counts, and which retries.

    planned_basis       of a whole version: of each file what was planned last, and all retries
    committed_basis     of a partial version: of each file what is committed whole, and the retries that are committed

A partial version must neither lose the rows of a changed file nor show them twice while its new version is made. So of
the planned versions of a file the latest one counts whose first-time shards are all committed. If there is none, the
latest one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.ledger.carried import FileVersion
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.plan_tables import (
    carried_in,
    carrying,
    current_rows,
    flat_spans,
    is_first,
    parents_of,
    versions_of,
)

Versions = dict[str, FileVersion]  # by uri
NO_VERSION = FileVersion("", 0)


@dataclass(frozen=True)
class Basis:
    """What decides which samples of a plan count."""

    versions: Versions  # of each file the version that counts
    retries: list[PlannedShard]  # those that count, in the order of the plan


def planned_basis(tables: Mapping[int, pa.Table], retries: Sequence[PlannedShard]) -> Basis:
    """Return the basis of a whole version of some plan files. `retries` are those of all plan files."""
    return Basis(versions_of(tables), [entry for entry in retries if entry.plan in tables])


def committed_basis(tables: Mapping[int, pa.Table], retries: Sequence[PlannedShard], committed: pa.Array) -> Basis:
    """Return the basis of a partial version of some plan files.

    Args:
        retries: the retries of all plan files.
        committed: the ids of the committed shards (n).
    """
    versions: Versions = {}
    whole: set[str] = set()
    for number, table in sorted(tables.items()):
        carried = {rows.uri: rows for place in carrying(table) for rows in carried_in(table, place)}
        for uri, etag, is_whole in _planned_versions(table, committed):
            if is_whole:
                whole.add(uri)
            if is_whole or uri not in whole:
                versions[uri] = FileVersion(etag, number, carried.get(uri))
    shards = pa.array([entry.shard.id for entry in retries], pa.string())
    made = set(shards.filter(pc.is_in(shards, value_set=committed)).to_pylist())
    return Basis(versions, [entry for entry in retries if entry.plan in tables and entry.shard.id in made])


def _planned_versions(table: pa.Table, committed: pa.Array) -> list[tuple[str, str, bool]]:
    """Return (uri, etag, whether all its shards are committed) of the input versions that a plan file plans."""
    first = table.filter(is_first(table))
    spans = flat_spans(first)
    is_made = pc.is_in(first["shard"], value_set=committed).combine_chunks().take(parents_of(first))
    columns = {"uri": spans.field("uri"), "etag": spans.field("etag"), "is_made": is_made}
    found = pa.table(columns).group_by(["uri", "etag"], False).aggregate([("is_made", "all")])
    return list(zip(*(found[name].to_pylist() for name in ("uri", "etag", "is_made_all")), strict=True))


def differing(now: Versions, then: Versions) -> list[str]:
    """Return the files of which another version counts, sorted."""
    files = now.keys() | then.keys()
    return sorted(uri for uri in files if now.get(uri, NO_VERSION)[:2] != then.get(uri, NO_VERSION)[:2])


class Missing(NamedTuple):
    """What a partial version lacks of a whole one."""

    shards: int  # that count and have no commit
    samples: int


def missing_of(tables: Mapping[int, pa.Table], basis: Basis, is_made: Mapping[int, NDArray[np.bool_]]) -> Missing:
    """Return what a version of some plan files lacks of a whole one.

    Its samples are those of shards without a commit, and the rows of changed files that their earlier version, which
    still counts, has not.

    Args:
        is_made: plan file -> which of its shards (n) are committed.
    """
    planned = versions_of(tables)
    changed = differing(planned, basis.versions)
    shown = planned | dict.fromkeys(changed, NO_VERSION)
    shards = samples = 0
    for number, table in tables.items():
        counting, made = current_rows(number, table, planned), is_made[number]
        in_both = current_rows(number, table, shown).rows
        if changed:
            in_both = in_both + _rows_in_both(number, table, changed, planned, basis.versions)
        rows = counting.rows - in_both * made
        samples += int((rows * table["samples_per_row"].to_numpy()).sum())
        shards += int((counting.is_current & ~made).sum())
    return Missing(shards, samples)


def _rows_in_both(
    number: int, table: pa.Table, uris: Sequence[str], one: Versions, other: Versions
) -> NDArray[np.int64]:
    """Count the rows of some files that two versions of each have, by shard (n) of a plan file."""
    spans, parents, first = flat_spans(table), parents_of(table), is_first(table).to_numpy()
    found = np.zeros(len(table), np.int64)
    of_files = pc.is_in(spans.field("uri"), pa.array(uris, pa.string()))
    for place in pc.indices_nonzero(of_files).to_pylist():
        span, shard = spans[place].as_py(), parents[place].as_py()
        positions = np.arange(span["start"], span["stop"])
        plan = number if first[shard] else None
        masks = [versions[span["uri"]].holds(span["etag"], positions, plan) for versions in (one, other)]
        found[shard] += np.count_nonzero(masks[0] & masks[1])
    return found
