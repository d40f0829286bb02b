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

from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.plan_tables import current_rows, flat_spans, is_first, parents_of, versions_of

Versions = dict[str, tuple[str, int]]  # uri -> (etag, number of the plan file that planned it)


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
    for number in sorted(tables):
        for uri, etag, is_whole in _planned_versions(tables[number], committed):
            if is_whole:
                whole.add(uri)
            if is_whole or uri not in whole:
                versions[uri] = (etag, number)
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


class Missing(NamedTuple):
    """What a partial version lacks of a whole one."""

    shards: int  # that count and have no commit
    samples: int


def missing_of(tables: Mapping[int, pa.Table], basis: Basis, is_made: Mapping[int, NDArray[np.bool_]]) -> Missing:
    """Return what a version of some plan files lacks of a whole one.

    Its samples are those of shards without a commit, and those of changed files whose earlier version still counts.

    Args:
        is_made: plan file -> which of its shards (n) are committed.
    """
    planned = versions_of(tables)
    shown = {uri: version if basis.versions[uri] == version else ("", 0) for uri, version in planned.items()}
    shards = samples = 0
    for number, table in tables.items():
        counting, made = current_rows(number, table, planned), is_made[number]
        rows = counting.rows - current_rows(number, table, shown).rows * made
        samples += int((rows * table["samples_per_row"].to_numpy()).sum())
        shards += int((counting.is_current & ~made).sum())
    return Missing(shards, samples)
