"""Apply dataset-wide rules to samples that lie in a DuckDB database, in bounded memory.

    decided     all samples that are decided now or whose earlier decision stands (DECIDED)
    held        kept samples of the latest version that are not in `decided` (HELD)
    lost        the result: samples of `decided` that keep_best or near_duplicate rejects, with the reason (LOST)

Samples are compared in the order of (since, plan, place, number). Those with `since` stand: they take a place among the
best of their row, and later images are compared with theirs, but they are not decided again.
"""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa

from pipelines.dataset.decisions import SAME_IMAGE, Criteria
from pipelines.dataset.near_duplicates import near_duplicates
from pipelines.quality import KeepBest
from pipelines.store.joins import BESIDE_OBJECTS, MEMORY

PLACE = [
    pa.field("plan", pa.int32()),  # of the shard
    pa.field("place", pa.int64()),  # of the shard in its plan file
    pa.field("number", pa.int32()),  # of the sample in its shard
]
DECIDED = pa.schema(
    [
        *PLACE,
        ("shard", pa.string()),
        ("id", pa.string()),
        ("since", pa.int32()),  # the version whose decision stands; 0: it is decided now
        ("outcome", pa.string()),
        ("reasons", pa.list_(pa.string())),  # null where there are none
        ("made", pa.string()),  # the outcome in its commit
        ("made_reasons", pa.list_(pa.string())),
        ("was", pa.string()),  # the outcome before this decision
        ("was_reasons", pa.list_(pa.string())),
        ("was_since", pa.int32()),
        ("score", pa.float64()),  # by which keep_best ranks
        ("phash", pa.string()),
    ]
)
HELD = pa.schema([*PLACE, ("id", pa.string()), ("since", pa.int32()), ("phash", pa.string())])
LOST = pa.schema([*PLACE, ("reason", pa.string())])
ORDER = "plan, place, number"
SOURCE = "regexp_replace(id, '/[^/]*$', '')"  # the id of a sample's row
SETTLED = f"""select decided.* replace (
        if(reason is null, outcome, 'rejected') as outcome, if(reason is null, reasons, [reason]) as reasons)
    from decided left join lost using ({ORDER})"""
BATCH = 16_384  # rows that are Python objects at once
TYPES = {
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.string(): "varchar",
    pa.float64(): "double",
    pa.list_(pa.string()): "varchar[]",
}


def memory_for(criteria: Criteria) -> int:
    """Return the memory in bytes that DuckDB gets: the search for near-duplicates needs the most."""
    return BESIDE_OBJECTS if criteria.max_distance is None else MEMORY


class Settling:
    """The samples of one decision over a whole dataset."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """connection: from store/joins.py. Its tables of these names are replaced."""
        self.connection = connection
        for name, schema in (("decided", DECIDED), ("held", HELD), ("lost", LOST)):
            columns = ", ".join(f'"{field.name}" {TYPES[field.type]}' for field in schema)
            connection.execute(f"create or replace table {name} ({columns})")

    def add(self, table: str, rows: pa.Table) -> None:
        """Add rows to a table. Columns that they lack are null."""
        if len(rows):
            self.connection.register("rows_to_add", rows)
            self.connection.execute(f"insert into {table} by name select * from rows_to_add")
            self.connection.unregister("rows_to_add")

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Yield the result of a query. Other queries may run in the meantime."""
        with self.connection.cursor() as cursor:
            yield from cursor.sql(sql).to_arrow_reader(BATCH)

    def settle(self, criteria: Criteria, task: str) -> None:
        """Fill the table `lost`."""
        self.connection.execute(
            """create or replace table standing as select * from held union all by name
            select plan, place, number, id, since, phash from decided where since > 0 and outcome = 'kept'"""
        )
        if criteria.keep_best is not None:
            self._keep_best(criteria.keep_best)
        if criteria.max_distance is not None:
            self._drop_duplicates(criteria.max_distance, task in SAME_IMAGE)

    def _keep_best(self, best: KeepBest) -> None:
        rank = "score" if best.order == "lowest" else "-score"
        self.connection.execute(
            f"""create or replace table losers as
            with rivals as (
                select {ORDER}, score, {SOURCE} as source, if(score is null or isnan(score), 'inf', {rank}) as rank
                from decided where since = 0 and outcome = 'kept'),
            taken as (
                select {SOURCE} as source, count(*) as taken from standing
                where {SOURCE} in (select source from rivals) group by source),
            ranked as (
                select *, row_number() over (partition by source order by rank, {ORDER}) as rank_in_row from rivals)
            select {ORDER}, score from ranked left join taken using (source)
            where rank_in_row > greatest(0, {best.k} - coalesce(taken, 0))"""
        )
        for batch in self.batches(f"select {ORDER}, score from losers"):
            reasons = [
                f"keep_best: {best.by} {'is missing' if score is None else f'is {score:.4g}'}, not among the "
                f"{best.k} {best.order} of its row"
                for score in batch["score"].to_pylist()
            ]
            rows = pa.table(batch.select([field.name for field in PLACE]))
            self.add("lost", rows.append_column("reason", pa.array(reasons, pa.string())))

    def _drop_duplicates(self, max_distance: int, same_image: bool) -> None:
        self.connection.execute(
            f"""create or replace table compared as
            select row_number() over (order by is_held desc, since, {ORDER}) - 1 as "order", {ORDER}, id, is_held,
                ('0x' || phash)::ubigint as hash, {SOURCE} as row
            from (
                select {ORDER}, id, since, phash, true as is_held from standing where phash is not null
                union all by name
                select {ORDER}, id, since, phash, false as is_held from decided anti join lost using ({ORDER})
                where since = 0 and outcome = 'kept' and phash is not null)"""
        )
        if not self.connection.execute("select count(*) from compared where not is_held").fetchall()[0][0]:
            return
        candidates = '(select "order", hash, row, is_held from compared)'
        near_duplicates(self.connection, candidates, max_distance, same_row_is_no_duplicate=same_image)
        self.connection.execute(
            """insert into lost by name
            select a.plan, a.place, a.number,
                'near_duplicate: ' || distance || ' of 64 bits from ' || b.id as reason
            from near_duplicates found join compared a on (a."order" = found."order")
            join compared b on (b."order" = found.nearest)"""
        )
