"""Decide which samples count where files may share rows, or retries replace samples, in bounded memory.

Samples are judged as ledger/counting.py says, by joins of DuckDB over what is new and affected, and what the latest
version covers of the same rows. Commits wait on shelves meanwhile. Only samples whose row has another id than the one
that was recorded, or that do not count, are fetched from the database.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.changes import SHARDS_AT_ONCE, shards_with_rows
from pipelines.ledger.counting import InputVersion, JudgedSample, row_id
from pipelines.ledger.entries import Commit, PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.segments import ShardRows
from pipelines.store.joins import BESIDE_OBJECTS, joins
from pipelines.store.shelf import Shelf, chunks_of

if TYPE_CHECKING:
    from pipelines.ledger.counted import Uncovered

Pair = tuple[PlannedShard, Commit]
MADE = pa.schema(
    [
        ("plan", pa.int32()),
        ("place", pa.int64()),  # of the shard in its plan file
        ("number", pa.int32()),  # of the sample in its commit
        ("file", pa.int64()),  # number of the input version; null if the version of the file that counts lacks the row
        ("of_plan", pa.int32()),  # the plan file of the version of the file that counts
        ("position", pa.int64()),
        ("row", pa.string()),  # the id of its row, by this attempt
        ("is_default", pa.bool_()),  # whether that is the id of a row whose own id could not be read
        ("is_first", pa.bool_()),
        ("makes", pa.bool_()),  # whether no later retry replaces it
    ]
)
KNOWN = pa.schema(
    [("plan", pa.int32()), ("place", pa.int64()), ("number", pa.int32()), ("row", pa.string()), ("counts", pa.bool_())]
)


def judged_together(
    work: Uncovered, chunks: Iterable[tuple[Sequence[PlannedShard], Mapping[str, Commit]]]
) -> Iterator[list[tuple[PlannedShard, Commit, list[JudgedSample]]]]:
    """Yield the committed shards that are new or affected, and covered ones that have a row in common with them.

    Args:
        chunks: the shards that are new or affected, in the order of the plan, with their commits.

    Yields:
        Some shards in the order of the plan, each with its samples of current files.
    """
    with joins(BESIDE_OBJECTS) as connection, Shelf[Pair]() as new, Shelf[Pair]() as old:
        judge = _Judge(work, connection)
        known: set[str] = set()
        for entries, commits in chunks:
            pairs = [(entry, commits[entry.shard.id]) for entry in entries if entry.shard.id in commits]
            known.update(entry.shard.id for entry in entries)
            judge.add(pairs)
            new.add(pairs)
        judge.name_rows()
        if work.changes.may_share_rows:
            for shards in chunks_of(judge.holders(known), SHARDS_AT_ONCE):
                held = work.before.shards(shards)
                commits = work.read(shards)
                pairs = [(entry, commits[entry.shard.id]) for entry in entries_of(work.ledger, held)]
                judge.add(pairs)
                judge.add_known(pairs, held)
                old.add(pairs)
            judge.name_rows()
        judge.count()
        yield from judge.judged(heapq.merge(new, old, key=lambda pair: (pair[0].plan, pair[0].position)))


class _Judge:
    """Tables of what is judged together."""

    def __init__(self, work: Uncovered, connection: duckdb.DuckDBPyConnection) -> None:
        self._work, self._connection, self._run = work, connection, connection.execute
        self._counting = work.counting([])  # knows the input versions and retries that count
        self._file_of: dict[InputVersion, int] = {}
        self._run(
            """create table made (plan integer, place bigint, number integer, file bigint, of_plan integer,
            position bigint, "row" varchar, is_default boolean, is_first boolean, makes boolean)"""
        )
        self._run('create table known (plan integer, place bigint, number integer, "row" varchar, counts boolean)')
        self._run('create table asked ("row" varchar)')

    def add(self, pairs: Sequence[Pair]) -> None:
        """Add the samples of committed shards."""
        counting = self._counting
        columns: dict[str, list[Any]] = {name: [] for name in MADE.names}
        for entry, commit in pairs:
            spans = entry.shard.spans
            files = [self._file_of.setdefault((span.uri, span.etag), len(self._file_of)) for span in spans]
            plans = [counting.versions[span.uri].plan for span in spans]
            samples = commit.samples
            rows = [row_id(sample) for sample in samples]
            columns["plan"] += [entry.plan] * len(samples)
            columns["place"] += [entry.position] * len(samples)
            columns["number"] += range(len(samples))
            columns["file"] += [
                files[sample.span] if counting.has_row(entry, spans[sample.span], sample.position) else None
                for sample in samples
            ]
            columns["of_plan"] += [plans[sample.span] for sample in samples]
            columns["position"] += [sample.position for sample in samples]
            columns["row"] += rows
            columns["is_default"] += [
                row == f"{spans[sample.span].relative_path}:{sample.position}"
                for row, sample in zip(rows, samples, strict=True)
            ]
            columns["is_first"] += [entry.is_first] * len(samples)
            columns["makes"] += [counting.makes(entry, sample) for sample in samples]
        self._add("made", pa.table({name: columns[name] for name in MADE.names}, MADE))

    def add_known(self, pairs: Sequence[Pair], held: Mapping[str, ShardRows]) -> None:
        """Add what the latest version says of the samples of covered shards."""
        rows: list[tuple[int, int, int, str, bool]] = []
        for entry, commit in pairs:
            samples = held[entry.shard.id].samples
            said = dict(
                zip(
                    samples["id"].to_pylist(),
                    zip(samples["row"].to_pylist(), samples["since"].to_pylist(), strict=True),
                    strict=True,
                )
            )
            rows += [
                (entry.plan, entry.position, number, said[sample.id][0], said[sample.id][1] > 0)
                for number, sample in enumerate(commit.samples)
                if sample.id in said
            ]
        columns = zip(*rows, strict=True) if rows else [()] * len(KNOWN)
        self._add("known", pa.table(dict(zip(KNOWN.names, map(list, columns), strict=True)), KNOWN))

    def _add(self, table: str, rows: pa.Table) -> None:
        if len(rows):
            self._connection.register("rows_to_add", rows)
            self._run(f"insert into {table} by name select * from rows_to_add")
            self._connection.unregister("rows_to_add")

    def name_rows(self) -> None:
        """Find the id of each row: the first that an attempt could read."""
        self._run(
            """create or replace table names as select file, position, arg_min("row", [plan, place, number]) as name
            from made where not is_default and file is not null group by file, position"""
        )
        self._run(
            """create or replace view named as select made.*, coalesce(name, "row") as name
            from made left join names using (file, position)"""
        )

    def holders(self, known: set[str]) -> Iterator[str]:
        """Yield the covered shards that have a row in common with what was added. Their rows are noted in `asked`."""
        self._run('insert into asked select distinct "row" from made union select distinct name from named')
        latest, bases = self._work.before.latest, self._bases() - known
        if latest is None or self._work.before.is_old:  # of format 1 and 2 all shards are new
            return
        found = set(bases)
        for table in latest.content.rows():
            self._connection.register("covered", table)
            self._run('select distinct shard from covered semi join asked using ("row")')
            found.update(shard for (shard,) in self._connection.fetchall())
            self._connection.unregister("covered")
        shards = pa.concat_tables([table.select(["shard", "plan", "place"]) for _, table in latest.content.shards])
        shards = shards.filter(pc.is_in(shards["shard"], pa.array(sorted(found - known), pa.string())))
        yield from shards.sort_by([("plan", "ascending"), ("place", "ascending")])["shard"].to_pylist()

    def _bases(self) -> set[str]:
        """Return the shards of rows that were planned again and could not be read then, and ask for all their rows."""
        bases = shards_with_rows(self._work.ledger, self._unread_rows())
        for shards in chunks_of(sorted(bases), SHARDS_AT_ONCE):
            for shard in self._work.before.shards(shards).values():
                self._add("asked", pa.table({"row": shard.samples["row"].unique()}))
        return bases

    def _unread_rows(self) -> dict[tuple[str, str], list[int]]:
        """Return (uri, etag) -> positions of rows that were planned again and whose id could not be read then."""
        unread: dict[tuple[str, str], list[int]] = {}
        version_of = {file: version for version, file in self._file_of.items()}
        self._run(
            """select distinct made.file, made.position from made anti join names using (file, position)
            where is_default and not is_first and made.file is not null order by all"""
        )
        for file, position in self._connection.fetchall():
            unread.setdefault(version_of[file], []).append(position)
        return unread

    def count(self) -> None:
        """Find the samples with another row than the recorded one, and those that do not count."""
        self._run(
            """create table counting_files as select name, arg_max(file, [of_plan, plan, place, number]) as counting
            from named where is_first and file is not null group by name"""
        )
        counts = "makes and coalesce(counting = file, false)" if self._work.changes.may_share_rows else "makes"
        self._run(
            f"""create table judged as
            select plan, place, number, recorded,
                if(is_said, said, name) as name, if(is_said, said_counts, {counts}) as counts
            from (
                select named.plan, named.place, named.number, named.file, named.makes, named."row" as recorded,
                    named.name, counting, known."row" as said, known.counts as said_counts,
                    known."row" is not null and asked."row" is null as is_said
                from named left join counting_files using (name)
                left join known using (plan, place, number)
                left join (select distinct "row" from asked) asked on (known."row" = asked."row")
                where named.file is not null)
            where name <> recorded or not counts"""
        )

    def judged(self, pairs: Iterable[Pair]) -> Iterator[list[tuple[PlannedShard, Commit, list[JudgedSample]]]]:
        """Yield shards, which come in the order of the plan, with their samples of current files."""
        with self._connection.cursor() as cursor:
            found = cursor.sql("select plan, place, number, name, counts from judged order by plan, place, number")
            rows = (
                row
                for batch in found.to_arrow_reader(16_384)
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
            )
            following = next(rows, None)
            for chunk in chunks_of(pairs, SHARDS_AT_ONCE):
                shards = []
                for entry, commit in chunk:
                    differing: dict[int, tuple[str, bool]] = {}
                    while following is not None and following[:2] == (entry.plan, entry.position):
                        differing[following[2]] = following[3], following[4]
                        following = next(rows, None)
                    spans = entry.shard.spans
                    samples = [
                        JudgedSample(entry, sample, *differing.get(number, (row_id(sample), True)))
                        for number, sample in enumerate(commit.samples)
                        if self._counting.has_row(entry, spans[sample.span], sample.position)
                    ]
                    shards.append((entry, commit, samples))
                yield shards


def entries_of(ledger: Ledger, shards: Mapping[str, ShardRows]) -> list[PlannedShard]:
    """Return the planned shards that some shards of segments are of."""
    places: dict[int, list[int]] = {}
    for shard in shards.values():
        places.setdefault(shard.plan, []).append(shard.place)
    return [entry for number, chosen in places.items() for entry in ledger.entries(number, sorted(chosen))]
