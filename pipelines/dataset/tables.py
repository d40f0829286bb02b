"""The tables of a version: those of the commits where they hold what counts, else copies of their rows.

A table is written anew where some of its rows count no more (superseded, counting.py) or end elsewhere than their
commit says (decisions.py). Rows are moved as they are stored: no image is decoded, and the point clouds they name
stay where they are. A shard of which nothing changed since the last version has the files that it had then.

A sample that was rejected when it was made got no point cloud. If it is kept now and the job has them as files, its own
is made here from the stored image and depth (sinks/stored_points.py): the one case in which they are decoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.decisions import Decided
from pipelines.ledger.entries import FOLDERS, OUTCOMES, Commit, Outcome, StoredObject, sha256
from pipelines.ledger.versions import VersionFile
from pipelines.stages.sinks.parquet import table_bytes
from pipelines.stages.sinks.stored_points import STORED, stored_points
from pipelines.store.parquet import read_parquet
from pipelines.store.storage import Storage

if TYPE_CHECKING:
    from pipelines.spec.job import PointsSpec

WRITERS = 4  # shards at once; the tables of each are held in memory whole
CLOUD = "pointcloud"
REASONS = pa.field("reasons", pa.list_(pa.string()))
Ends = dict[Outcome, list[str]]  # where the samples of a shard end: outcome -> ids


@dataclass(frozen=True)
class Attempt:
    """One attempt to publish a version. The token keeps its objects apart from those of other publishers."""

    number: int
    token: str

    def path(self, kind: Literal["outcomes", "held"]) -> str:
        """The path of a table about the whole version."""
        return f"_versions/{self.number:06d}/{kind}-{self.token}.parquet"


@dataclass(frozen=True)
class Before:
    """What the version before has."""

    ends: Mapping[str, Ends]  # by shard
    files: Sequence[VersionFile]
    known: Mapping[tuple[str, str], str]  # (shard, SHA-256) -> path of a table, or of a point cloud that only it names


def write_tables(
    storage: Storage,
    attempt: Attempt,
    decided: Sequence[Decided],
    commits: Mapping[str, Commit],
    before: Before,
    points: PointsSpec,
) -> list[VersionFile]:
    """The files of the version, in the order of the plan; those that are not there yet are written."""
    shards: dict[str, list[Decided]] = {}
    for each in decided:
        shards.setdefault(each.counted.entry.shard.id, []).append(each)
    had: dict[str, list[VersionFile]] = {}
    for file in before.files:
        had.setdefault(file.shard, []).append(file)

    def files_of(shard: str) -> list[VersionFile]:
        ends = ends_of((each.outcome, each.counted.sample.id) for each in shards[shard])
        if before.ends.get(shard) == ends:
            return had[shard]
        return _Shard(storage, attempt, commits[shard], shards[shard], before.known, points).files(ends)

    with ThreadPoolExecutor(WRITERS) as pool:
        return [file for files in pool.map(files_of, shards) for file in files]


def ends_of(samples: Iterable[tuple[Outcome, str]]) -> Ends:
    """Outcome -> ids, of (outcome, id) in the order of the plan."""
    ends: Ends = {}
    for outcome, identifier in samples:
        ends.setdefault(outcome, []).append(identifier)
    return ends


class _Shard:
    """The tables of one shard, read when they are asked for."""

    def __init__(
        self,
        storage: Storage,
        attempt: Attempt,
        commit: Commit,
        decided: Sequence[Decided],
        known: Mapping[tuple[str, str], str],
        points: PointsSpec,
    ) -> None:
        self.storage, self.attempt, self.commit, self.known, self.points = storage, attempt, commit, known, points
        self.reasons = {each.counted.sample.id: list(each.reasons) for each in decided}
        self.stored = {each.outcome: each for each in commit.objects if each.kind == "table"}
        self.committed = ends_of((sample.outcome, sample.id) for sample in commit.samples)
        self._tables: dict[Outcome, pa.Table] = {}

    def files(self, ends: Ends) -> list[VersionFile]:
        files = []
        for outcome in OUTCOMES:
            if ids := ends.get(outcome):
                clouds: list[StoredObject] = []
                is_whole = ids == self.committed.get(outcome)
                stored = self.stored[outcome] if is_whole else self._write_table(outcome, ids, clouds)
                of_shard = (stored.rows, stored.bytes, stored.sha256, self.commit.shard)
                files.append(VersionFile(stored.path, outcome, *of_shard, tuple(clouds)))
        return files

    def _write_table(self, outcome: Outcome, ids: Sequence[str], clouds: list[StoredObject]) -> StoredObject:
        """Write the table of some samples, and the point clouds that it needs, which join `clouds`."""
        rows = self._rows(outcome, ids)
        if outcome == "kept" and self.points.as_files and CLOUD in rows.column_names:
            rows = self._with_clouds(rows, clouds)
        return self._write(FOLDERS[outcome], ".parquet", table_bytes(rows), len(ids), outcome, "table")

    def _with_clouds(self, rows: pa.Table, clouds: list[StoredObject]) -> pa.Table:
        """Rows with the point clouds of samples that had none because they were rejected when they were made."""
        paths = rows[CLOUD].to_pylist()
        rejected, stored = set(self.committed.get("rejected", ())), rows.select(STORED)
        for place, identifier in enumerate(rows["id"].to_pylist()):
            if identifier in rejected and (made := stored_points(stored.slice(place, 1).to_pylist()[0], self.points)):
                count, data = made
                clouds.append(self._write("pointclouds", ".ply", data, count, "kept", "points"))
                paths[place] = clouds[-1].path
        if not clouds:
            return rows
        number = rows.schema.get_field_index(CLOUD)
        return rows.set_column(number, rows.schema.field(number), pa.array(paths, pa.string()))

    def _write(
        self, folder: str, suffix: str, data: bytes, rows: int, outcome: Outcome, kind: Literal["table", "points"]
    ) -> StoredObject:
        """Write an object, unless the version before has the same of this shard."""
        digest = sha256(data)
        path = self.known.get((self.commit.shard, digest))
        if path is None:
            attempt = f"v{self.attempt.number:06d}-{self.attempt.token}"
            path = f"{folder}/{self.commit.shard}-{attempt}-{digest[:16]}{suffix}"
            self.storage.write_bytes(path, data)
        return StoredObject(path, len(data), digest, rows, outcome, kind)

    def _rows(self, outcome: Outcome, ids: Sequence[str]) -> pa.Table:
        """The rows of some samples from wherever their commit put them, in the order of `ids`."""
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
    """Rows of data/ or rejected/ as they are in data/."""
    if REASONS.name not in table.column_names:
        return table
    return _describe(table.drop_columns([REASONS.name]))


def _with_reasons(table: pa.Table, reasons: Sequence[Sequence[str]]) -> pa.Table:
    """Rows of data/ as they are in rejected/."""
    return _describe(table.append_column(REASONS, pa.array(reasons, REASONS.type)))


def _describe(table: pa.Table) -> pa.Table:
    """The metadata of the `datasets` library, without or with the feature `reasons` as the table has it."""
    metadata = dict(table.schema.metadata or {})
    if b"huggingface" in metadata:
        described = json.loads(metadata[b"huggingface"])
        features = described["info"]["features"]
        features.pop(REASONS.name, None)
        if REASONS.name in table.column_names:
            features[REASONS.name] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
        metadata[b"huggingface"] = json.dumps(described).encode()
    return table.replace_schema_metadata(metadata)
