"""Segments: the immutable parts of a published version, as columns.

    _versions/segments/<version>-<token>-<hash>.parquet          one row per committed sample (SAMPLES)
    _versions/segments/<version>-<token>-<hash>-shards.parquet   one row per shard: what it has, and its files (SHARDS)

A segment holds whole shards. A later segment that lists a shard again replaces it, so that a retry, a changed file or
another filter rewrites the shards that it changes and nothing else. `version.json` lists the segments of a version,
oldest first.

A sample counts or does not (ledger/counting.py). One that does not, because a file that was planned later has its row
or a retry replaced it, stays in its segment: it tells where the row is, and it may count again once that file is gone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jointdit.errors import StoreError
from pipelines.ledger.entries import Outcome, StoredObject, sha256
from pipelines.ledger.names import segment_object
from pipelines.store.parquet import read_parquet
from pipelines.store.storage import Storage

SAMPLES = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.string()),  # the id of its row, by whichever attempt could read it
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("position", pa.int64()),
        ("index", pa.int32()),
        ("round", pa.int32()),
        ("shard", pa.string()),
        ("plan", pa.int32()),
        ("place", pa.int64()),  # of the shard in its plan file
        ("since", pa.int32()),  # the version in which this decision was made; 0: the sample does not count
        ("outcome", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("made", pa.string()),  # the outcome in its commit
        ("made_reasons", pa.list_(pa.string())),
        ("file", pa.string()),
        ("phash", pa.string()),  # null where the criteria of its version do not compare images
        ("content", pa.string()),  # of its row, as in the commit; segments of earlier versions do not have it
    ]
)
CLOUD = pa.struct([("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string()), ("rows", pa.int64())])
FILE = pa.struct(
    [
        ("path", pa.string()),
        ("outcome", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("clouds", pa.list_(CLOUD)),
    ]
)
SHARDS = pa.schema(
    [
        ("shard", pa.string()),
        ("plan", pa.int32()),
        ("place", pa.int64()),
        ("first", pa.int64()),  # its first row among the samples of the segment
        ("samples", pa.int64()),
        ("superseded", pa.int64()),  # samples of its commit that do not count
        ("replaces", pa.bool_()),  # whether an older segment lists it too
        ("withheld", pa.int64()),  # samples of its commit that wait for others of their rows; may be null
        ("files", pa.list_(FILE)),
    ]
)
SEGMENT_ROWS = 1_000_000  # a segment is closed at this number of samples
ROW_GROUP = 65_536
AT_ONCE = 4096  # shards that are Python objects at once


@dataclass(frozen=True)
class VersionFile:
    """A table of a version."""

    path: str
    outcome: Outcome
    rows: int
    bytes: int
    sha256: str
    shard: str
    clouds: tuple[StoredObject, ...] = ()  # point clouds that its rows name and no commit does


@dataclass(frozen=True)
class Segment:
    """A segment as version.json names it."""

    path: str  # of its samples
    sha256: str
    shards_path: str
    shards_sha256: str
    rows: int  # samples, also those that do not count
    shards: int
    hashed: bool = False  # whether its samples with pixels have their perceptual hash

    @property
    def paths(self) -> tuple[str, str]:
        """The paths of its objects."""
        return self.path, self.shards_path


@dataclass
class ShardRows:
    """One shard of a segment as it is written or was read: columns of its samples, and its files."""

    shard: str
    plan: int
    place: int
    samples: pa.Table  # SAMPLES
    files: tuple[VersionFile, ...]
    superseded: int = 0  # samples of its commit that do not count
    replaces: bool = False
    withheld: int = 0  # samples of its commit that wait for others of their rows


class SegmentWriter:
    """Writes shards, in the order of the plan, into as many segments as they need."""

    def __init__(self, storage: Storage, number: int, token: str, hashed: bool) -> None:
        self.segments: list[Segment] = []
        self._storage, self._number, self._token, self._hashed = storage, number, token, hashed
        self._tables: list[pa.Table] = []
        self._shards: list[dict[str, Any]] = []
        self._rows = 0

    def add(self, shard: ShardRows) -> None:
        """Add a shard. A full segment is written."""
        if self._rows and self._rows + len(shard.samples) > SEGMENT_ROWS:
            self.flush()
        self._shards.append(
            {
                "shard": shard.shard,
                "plan": shard.plan,
                "place": shard.place,
                "first": self._rows,
                "samples": len(shard.samples),
                "superseded": shard.superseded,
                "replaces": shard.replaces,
                "withheld": shard.withheld,
                "files": [asdict(file) for file in shard.files],
            }
        )
        self._tables.append(shard.samples)
        self._rows += len(shard.samples)

    def flush(self) -> None:
        """Write what was added since the last segment."""
        if not self._shards:
            return
        samples = _bytes_of(pa.concat_tables(self._tables) if self._tables else SAMPLES.empty_table())
        shards = _bytes_of(pa.Table.from_pylist(self._shards, SHARDS))
        name = f"{self._number:06d}-{self._token}-{sha256(samples)[:16]}"
        segment = Segment(
            path=segment_object(f"{name}.parquet"),
            sha256=sha256(samples),
            shards_path=segment_object(f"{name}-shards.parquet"),
            shards_sha256=sha256(shards),
            rows=self._rows,
            shards=len(self._shards),
            hashed=self._hashed,
        )
        self._storage.write_bytes(segment.path, samples)
        self._storage.write_bytes(segment.shards_path, shards)
        self.segments.append(segment)
        self._tables, self._shards, self._rows = [], [], 0


def _bytes_of(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


@dataclass
class Segments:
    """Reads the segments of one version. Shards that a later segment replaces are left out."""

    storage: Storage
    segments: Sequence[Segment]
    _live: dict[str, pa.Table] = field(default_factory=dict)  # path of a segment -> its live shards

    @cached_property
    def shards(self) -> list[tuple[Segment, pa.Table]]:
        """The live shards of each segment (SHARDS), oldest segment first: about 300 bytes a shard."""
        live: list[tuple[Segment, pa.Table]] = []
        replaced = pa.array([], pa.string())
        for segment in reversed(self.segments):
            table = self._read(segment.shards_path)
            ids = table["shard"]
            if len(replaced):
                table = table.filter(pc.invert(pc.is_in(ids, replaced)))
            again = table.filter(table["replaces"])["shard"]
            if len(again):
                replaced = pa.concat_arrays([replaced, again.combine_chunks()])
            live.append((segment, table))
        return live[::-1]

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """The ids of all shards (n)."""
        return pa.chunked_array([c for _, t in self.shards for c in t["shard"].chunks], pa.string())

    @property
    def whole(self) -> pa.ChunkedArray:
        """The ids of the shards whose samples all count (n)."""
        tables = (table.filter(pc.equal(table["superseded"], 0)) for _, table in self.shards)
        return pa.chunked_array([chunk for table in tables for chunk in table["shard"].chunks], pa.string())

    def samples(self, columns: Sequence[str], where: Mapping[str, Any] | None = None) -> Iterator[pa.Table]:
        """Yield the samples that count, a row group at a time, in the order of the segments.

        Args:
            where: column -> the value that it must have.
        """
        for segment, shards in self.shards:
            yield from self._samples_of(segment, shards, columns, where or {})

    def _samples_of(
        self, segment: Segment, shards: pa.Table, columns: Sequence[str], where: Mapping[str, Any]
    ) -> Iterator[pa.Table]:
        wanted = list(dict.fromkeys([*columns, "shard", "since", *where]))
        dead = len(shards) < segment.shards
        with self._open(segment.path) as parquet:
            for number in range(parquet.num_row_groups):
                table = _read_group(parquet, number, wanted)
                mask = pc.greater(table["since"], 0)
                for name, value in where.items():
                    mask = pc.and_(mask, pc.equal(table[name], value))
                if dead:
                    mask = pc.and_(mask, pc.is_in(table["shard"], shards["shard"].combine_chunks()))
                yield table.filter(mask).select(list(columns))

    def rows(self) -> Iterator[pa.Table]:
        """Yield the rows and shards of all samples, also of those that do not count or whose shard is replaced."""
        for segment, _ in self.shards:
            with self._open(segment.path) as parquet:
                for number in range(parquet.num_row_groups):
                    yield parquet.read_row_group(number, ["row", "shard"], use_threads=False)

    def of_shards(self, wanted: Sequence[str]) -> Iterator[ShardRows]:
        """Yield these shards with all their samples, in the order of the segments. Reads only the row groups needed."""
        chosen = pa.array(sorted(wanted), pa.string())
        for segment, shards in self.shards:
            mine = shards.filter(pc.is_in(shards["shard"], chosen))
            if len(mine):
                yield from self._shards_of(segment, mine)

    def everything(self, chosen: Sequence[Segment]) -> Iterator[ShardRows]:
        """Yield the live shards of some segments with all their samples."""
        for segment, shards in self.shards:
            if segment in chosen:
                yield from self._shards_of(segment, shards)

    def _shards_of(self, segment: Segment, shards: pa.Table) -> Iterator[ShardRows]:
        with self._open(segment.path) as parquet:
            sizes = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
            groups: dict[int, pa.Table] = {}
            for row in shards.to_pylist():
                parts, start = [], 0
                first, last = row["first"], row["first"] + row["samples"]
                for number, size in enumerate(sizes):
                    low, high = max(first, start), min(last, start + size)
                    if low < high:
                        if number not in groups:
                            groups = {number: _read_group(parquet, number, SAMPLES.names)} | (
                                {k: v for k, v in groups.items() if k == number - 1}
                            )
                        parts.append(groups[number].slice(low - start, high - low))
                    start += size
                samples = pa.concat_tables(parts) if parts else SAMPLES.empty_table()
                described = {name: row[name] for name in ("shard", "plan", "place", "superseded", "replaces")}
                yield ShardRows(**described, samples=samples, files=files_of(row), withheld=row["withheld"] or 0)

    def files(self) -> Iterator[VersionFile]:
        """Yield the files of the version in the order of the plan."""
        shards = pa.concat_tables([table.select(["shard", "plan", "place", "files"]) for _, table in self.shards])
        order = pc.sort_indices(shards, [("plan", "ascending"), ("place", "ascending")])
        for start in range(0, len(order), AT_ONCE):
            for row in shards.take(order.slice(start, AT_ONCE)).to_pylist():
                yield from files_of(row)

    def _read(self, path: str) -> pa.Table:
        try:
            return read_parquet(self.storage.read_bytes(path), SHARDS)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise StoreError(f"{self.storage.uri_of(path)} is damaged: restore it from a backup.") from error

    def _open(self, path: str) -> Any:
        return _Opened(self.storage, path)


class _Opened:
    """A Parquet file of the output, open within `with`."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path

    def __enter__(self) -> pq.ParquetFile:
        self._file = self._storage.open(self._path)
        try:
            return pq.ParquetFile(self._file)
        except pa.ArrowException as error:
            self._file.close()
            name = self._storage.uri_of(self._path)
            raise StoreError(f"{name} is damaged: restore it from a backup.") from error

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _read_group(parquet: pq.ParquetFile, number: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of SAMPLES from a row group. Those that segments of earlier versions do not have are null."""
    table = parquet.read_row_group(number, columns, use_threads=False)
    for name in columns:
        if name not in table.column_names:
            table = table.append_column(SAMPLES.field(name), pa.nulls(len(table), SAMPLES.field(name).type))
    return table.select(list(columns))


def files_of(shard: Mapping[str, Any]) -> tuple[VersionFile, ...]:
    """Return the files of a row of SHARDS."""
    return tuple(
        VersionFile(
            path=file["path"],
            outcome=file["outcome"],
            rows=file["rows"],
            bytes=file["bytes"],
            sha256=file["sha256"],
            shard=shard["shard"],
            clouds=tuple(StoredObject(**cloud, outcome="kept", kind="points") for cloud in file["clouds"] or ()),
        )
        for file in shard["files"] or ()
    )
