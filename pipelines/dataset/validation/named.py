"""The objects that commits and versions name, in a DuckDB database, compared with each other and with listings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import duckdb
import pyarrow as pa

from pipelines.ledger.entries import OBJECT_FOLDERS, Commit, StoredObject
from pipelines.ledger.segments import SHARDS
from pipelines.ledger.versions import Version
from pipelines.store.storage import Storage

NAMED = pa.schema(
    [
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("rows", pa.int64()),
        ("outcome", pa.string()),
        ("kind", pa.string()),
        ("shard", pa.string()),  # of a commit; null if a version names it
        ("version", pa.int32()),  # 0: a commit names it
    ]
)
FIELDS = "path, bytes, sha256, rows, outcome, kind"


class Named:
    """All objects that are named."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, storage: Storage) -> None:
        self.storage, self._connection, self._run = storage, connection, connection.execute
        self._run(
            """create table named (path varchar, bytes bigint, sha256 varchar, "rows" bigint, outcome varchar,
            kind varchar, shard varchar, version integer)"""
        )
        self._run("create table listed (path varchar, size bigint)")
        self._run("create table described (path varchar)")

    def add_commits(self, commits: Mapping[str, Commit]) -> None:
        """Add the objects of commits."""
        objects = [(shard, stored) for shard, commit in commits.items() for stored in commit.objects]
        columns = {name: [getattr(stored, name) for _, stored in objects] for name in FIELDS.split(", ")}
        columns |= {"shard": [shard for shard, _ in objects], "version": [0] * len(objects)}
        self._add("named", pa.table(columns, NAMED))

    def add_version(self, version: Version) -> None:
        """Add the objects of a version."""
        self._add("described", pa.table({"path": pa.array(sorted(version.own_paths), pa.string())}))
        if version.has_segments:
            for _, shards in version.content.shards:
                self._add_files(version.number, shards.select(["files"]))
        else:
            files = [{"files": [_as_stored(file)]} for file in version.listed]
            self._add_files(version.number, pa.Table.from_pylist(files, pa.schema([SHARDS.field("files")])))

    def _add_files(self, number: int, shards: pa.Table) -> None:
        self._connection.register("shards_to_add", shards)
        self._run(
            f"""insert into named by name
            with files as (select unnest(files) as file from shards_to_add),
            clouds as (select unnest(file.clouds) as cloud from files)
            select file.path, file.bytes, file.sha256, file.rows, file.outcome, 'table' as kind, {number} as version
            from files union all by name
            select cloud.path, cloud.bytes, cloud.sha256, cloud.rows, 'kept' as outcome, 'points' as kind,
                {number} as version from clouds"""
        )
        self._connection.unregister("shards_to_add")

    def _add(self, table: str, rows: pa.Table) -> None:
        if len(rows):
            self._connection.register("rows_to_add", rows)
            self._run(f"insert into {table} by name select * from rows_to_add")
            self._connection.unregister("rows_to_add")

    def contradictions(self) -> Iterator[str]:
        """Find objects of several shards, and those of which versions and commits say different things."""
        self._run(
            """create or replace table objects as
            select path, unnest(arg_min(struct_pack(bytes := bytes, sha256 := sha256, "rows" := "rows",
                outcome := outcome, kind := kind), version)) from named group by path"""
        )
        shared = """select shard, path from named where version = 0
            qualify min(shard) over (partition by path) <> shard and contains(path, shard)"""
        for shard, path in self._rows(shared):
            yield f"shard {shard} names {path}, which is of another shard."
        different = """select distinct version, path from named join objects using (path)
            where version > 0 and (named.bytes <> objects.bytes or named.sha256 <> objects.sha256
                or named.rows <> objects.rows or named.outcome <> objects.outcome or named.kind <> objects.kind)"""
        for version, path in self._rows(different):
            yield f"version {version} and a commit say different things of {path}."

    def _rows(self, sql: str) -> Iterator[tuple[object, ...]]:
        with self._connection.cursor() as cursor:
            found = cursor.execute(sql)
            while rows := found.fetchmany(10_000):
                yield from rows

    def objects(self) -> dict[str, StoredObject]:
        """Return path -> object, all in memory. Needs `contradictions`."""
        stored: Iterable[tuple[object, ...]] = self._rows(f"select {FIELDS} from objects order by path")
        return {str(row[0]): StoredObject(**dict(zip(FIELDS.split(", "), row, strict=True))) for row in stored}  # type: ignore[arg-type]

    def sums(self) -> tuple[int, int, int]:
        """Return the number of objects, their bytes, and the number of point clouds. Needs `contradictions`."""
        ((files, size, clouds),) = self._run(
            "select count(*), coalesce(sum(bytes), 0)::bigint, count(*) filter (where kind = 'points') from objects"
        ).fetchall()
        return int(files), int(size), int(clouds)

    def list_objects(self) -> None:
        """List the objects that the store has."""
        for folder in OBJECT_FOLDERS:
            found = self.storage.list(folder)
            paths, sizes = [info.path for info in found], [info.size for info in found]
            self._add("listed", pa.table({"path": pa.array(paths, pa.string()), "size": pa.array(sizes, pa.int64())}))

    def faults_of_sizes(self) -> Iterator[str]:
        """Check that each object is there with its size. Needs `contradictions` and `list_objects`."""
        sql = """select path, bytes, size from objects left join listed using (path)
            where size is null or size <> bytes"""
        for path, size, found in self._rows(sql):
            if found is None:
                yield f"{path} is named by a commit and missing."
            else:
                yield f"{path} has {found} bytes, its commit says {size}."

    def orphans(self) -> Iterator[str]:
        """Note the objects of failed attempts. They are untidy, but readers of the version's files never see them."""
        sql = """select split_part(path, '/', 1) as folder, count(*), sum(size)::bigint
            from listed anti join named using (path) anti join described using (path) group by folder"""
        found = {folder: (count, size) for folder, count, size in self._rows(sql)}
        for folder in OBJECT_FOLDERS:
            if folder in found:
                count, size = found[folder]
                yield f"{folder}/ has {count} objects ({size} bytes) that no commit names."


def _as_stored(file: object) -> dict[str, object]:
    fields = {name: getattr(file, name) for name in ("path", "outcome", "rows", "bytes", "sha256")}
    clouds = [{n: getattr(c, n) for n in ("path", "bytes", "sha256", "rows")} for c in getattr(file, "clouds", ())]
    return {**fields, "clouds": clouds}
