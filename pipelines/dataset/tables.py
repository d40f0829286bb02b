"""Write the tables of a version, or reuse those of the commits and the previous version.

A table is written again where some of its rows do not count any more (ledger/counting.py) or end elsewhere than their
commit says (decisions.py). Rows are copied as they are stored: images are not decoded, and point clouds stay where they
are. A shard that did not change since the last version keeps its files.

A sample that was rejected when it was made has no point cloud. If it is kept now and the job stores clouds as files,
its cloud is made here from the stored image and depth (sinks/stored_points.py). Only then are images decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.entries import FOLDERS, OUTCOMES, Outcome, StoredObject, sha256
from pipelines.ledger.segments import VersionFile
from pipelines.stages.sinks.parquet import REASONS, features_metadata, table_bytes
from pipelines.stages.sinks.stored_points import STORED, stored_points
from pipelines.store.parquet import read_parquet
from pipelines.store.storage import Storage

if TYPE_CHECKING:
    from pipelines.dataset.decide import DecidedShard
    from pipelines.spec.job import PointsSpec

CLOUD = "pointcloud"
IdsByOutcome = dict[Outcome, list[str]]


@dataclass(frozen=True)
class PublishAttempt:
    """One attempt to publish a version. The token separates its objects from those of other publishers."""

    number: int
    token: str


def ids_by_outcome(samples: Iterable[tuple[Outcome, str]]) -> IdsByOutcome:
    """Group ids by outcome. `samples` are (outcome, id) in the order of the plan."""
    pairs = list(samples)
    outcomes = dict.fromkeys(outcome for outcome, _ in pairs)
    return {outcome: [identifier for of, identifier in pairs if of == outcome] for outcome in outcomes}


class ShardTables:
    """The tables of one shard, each read when it is first needed."""

    def __init__(
        self,
        storage: Storage,
        attempt: PublishAttempt,
        shard: DecidedShard,
        borrowed: Mapping[str, str],
        points: PointsSpec,
    ) -> None:
        """borrowed: SHA-256 -> path of the objects of this shard that only the version before it names."""
        self.storage, self.attempt, self.commit, self.borrowed, self.points = (
            storage,
            attempt,
            shard.commit,
            borrowed,
            points,
        )
        self.reasons = {sample.id: list(sample.reasons) for sample in shard.decided.values()}
        self.stored = {stored.outcome: stored for stored in self.commit.objects if stored.kind == "table"}
        self.committed = ids_by_outcome((sample.outcome, sample.id) for sample in self.commit.samples)
        self._tables: dict[Outcome, pa.Table] = {}

    def files(self, ids_of: IdsByOutcome) -> list[VersionFile]:
        """Return the files that hold these samples, written where the commit has no such table."""
        files = []
        for outcome in OUTCOMES:
            if ids := ids_of.get(outcome):
                is_whole = ids == self.committed.get(outcome)
                stored, clouds = (self.stored[outcome], ()) if is_whole else self._write_table(outcome, ids)
                files.append(
                    VersionFile(
                        stored.path, outcome, stored.rows, stored.bytes, stored.sha256, self.commit.shard, clouds
                    )
                )
        return files

    def _write_table(self, outcome: Outcome, ids: Sequence[str]) -> tuple[StoredObject, tuple[StoredObject, ...]]:
        """Write the table of some samples. Returns it with the point clouds that were written for it."""
        rows = self._rows(outcome, ids)
        clouds: tuple[StoredObject, ...] = ()
        if outcome == "kept" and self.points.as_files and CLOUD in rows.column_names:
            rows, clouds = self._with_clouds(rows)
        return self._write(FOLDERS[outcome], ".parquet", table_bytes(rows), len(ids), outcome, "table"), clouds

    def _with_clouds(self, rows: pa.Table) -> tuple[pa.Table, tuple[StoredObject, ...]]:
        """Write point clouds of samples that were rejected when made. Returns (rows that name them, clouds)."""
        paths, clouds = rows[CLOUD].to_pylist(), []
        rejected, stored = set(self.committed.get("rejected", ())), rows.select(STORED)
        for place, identifier in enumerate(rows["id"].to_pylist()):
            if identifier in rejected and (made := stored_points(stored.slice(place, 1).to_pylist()[0], self.points)):
                count, data = made
                clouds.append(self._write("pointclouds", ".ply", data, count, "kept", "points"))
                paths[place] = clouds[-1].path
        if clouds:
            number = rows.schema.get_field_index(CLOUD)
            rows = rows.set_column(number, rows.schema.field(number), pa.array(paths, pa.string()))
        return rows, tuple(clouds)

    def _write(
        self, folder: str, suffix: str, data: bytes, rows: int, outcome: Outcome, kind: Literal["table", "points"]
    ) -> StoredObject:
        """Write an object, unless the previous version has the same object of this shard."""
        digest = sha256(data)
        path = self.borrowed.get(digest)
        if path is None:
            attempt = f"v{self.attempt.number:06d}-{self.attempt.token}"
            path = f"{folder}/{self.commit.shard}-{attempt}-{digest[:16]}{suffix}"
            self.storage.write_bytes(path, data)
        return StoredObject(path, len(data), digest, rows, outcome, kind)

    def _rows(self, outcome: Outcome, ids: Sequence[str]) -> pa.Table:
        """Return the rows of some samples, in the order of `ids`, from whichever tables the commit has them in."""
        sources = [source for source, there in self.committed.items() if not set(ids).isdisjoint(there)]
        parts = []
        for source in sources:
            table = self._table(source)
            table = table.filter(pc.is_in(table["id"], pa.array(ids, pa.string())))
            parts.append(_as_kept(table) if len(sources) > 1 or source != outcome else table)
        rows = pa.concat_tables(parts)
        if len(parts) > 1:
            rows = rows.take(pc.index_in(pa.array(ids, pa.string()), rows["id"].combine_chunks()))
        if outcome == "rejected":
            rows = _with_reasons(_as_kept(rows), [self.reasons[identifier] for identifier in ids])
        return rows

    def _table(self, outcome: Outcome) -> pa.Table:
        if outcome not in self._tables:
            data = self.storage.read_bytes(self.stored[outcome].path)
            self._tables[outcome] = read_parquet(data)
        return self._tables[outcome]


def _as_kept(table: pa.Table) -> pa.Table:
    """Return rows of data/ or rejected/ as they are stored in data/."""
    if REASONS.name not in table.column_names:
        return table
    return _described(table.drop_columns([REASONS.name]))


def _with_reasons(table: pa.Table, reasons: Sequence[Sequence[str]]) -> pa.Table:
    """Return rows of data/ as they are stored in rejected/."""
    return _described(table.append_column(REASONS, pa.array(reasons, REASONS.type)))


def _described(table: pa.Table) -> pa.Table:
    """Return a table whose metadata for the `datasets` library describes its columns."""
    return table.replace_schema_metadata(features_metadata(table.schema))
