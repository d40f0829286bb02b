"""Find which committed samples a version must hold, independently of ledger/counting.py, with DuckDB.

There are two reasons to leave out a sample of a file as it was planned last. Another shard makes the same (file,
position, index): the one with the highest retry counts, of several the one that was planned last. Or another file that
was planned later holds a row with its id, and that row counts. Only samples for which this can be are looked at: those
of files that several shards make samples of, and those whose row id, by its hash, occurs in several files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import duckdb
import numpy as np
import pyarrow as pa

SEEN = pa.schema(
    [
        ("plan", pa.int32()),
        ("place", pa.int64()),  # of the shard in its plan file
        ("number", pa.int32()),  # of the sample in its commit
        ("shard", pa.string()),
        ("id", pa.string()),
        ("made", pa.string()),
        ("made_reasons", pa.list_(pa.string())),
        ("file", pa.int64()),  # number of the file
        ("position", pa.int64()),
        ("index", pa.int32()),
        ("retry", pa.int32()),
        ("row", pa.string()),  # the id of its row, by this attempt
        ("is_default", pa.bool_()),  # whether that is the id of a row whose own id could not be read
    ]
)
SPANS = """select plan, place, span.uri, span.etag, span.start, span.stop, round = 0 and retry = 0 as is_first, number
    from (select {plan} as plan, place, round, coalesce(retry, 0) as retry, unnest(spans) as span,
        generate_subscripts(spans, 1) as number from plan_file)"""


class Recount:
    """The samples of files as they were planned last, and which of them do not count."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, tables: Mapping[int, pa.Table], plans: Collection[int]
    ) -> None:
        """tables: the plan files by number, of which `plans` are looked at."""
        self._connection, self._run = connection, connection.execute
        parts = []
        tables = {number: table for number, table in tables.items() if number in plans}
        for number, table in tables.items():
            placed = table.select(["round", "retry", "spans"])
            connection.register(f"plan_{number}", placed.append_column("place", pa.array(np.arange(len(table)))))
            parts.append(SPANS.format(plan=number).replace("plan_file", f"plan_{number}"))
        self._run(f"create or replace table plan_spans as {' union all '.join(parts)}")
        for number in tables:
            connection.unregister(f"plan_{number}")
        self._run(
            """create or replace table plan_files as
            select row_number() over (order by uri) as file, uri, arg_max(etag, [plan, place, number]) as etag
            from plan_spans where is_first group by uri"""
        )
        self._run("create or replace table plan_spans as select * from plan_spans join plan_files using (uri, etag)")
        self._run(
            """create or replace table plan_again as select file from plan_spans
            group by file having not bool_and(is_first) or count(distinct plan) > 1"""
        )
        self._run("create or replace table seen_rows (hash ubigint, file bigint)")
        self._run(
            """create or replace table seen_again (plan integer, place bigint, number integer, file bigint,
            position bigint, "index" integer, retry integer, "row" varchar, is_default boolean)"""
        )

    def files(self) -> dict[str, tuple[str, int]]:
        """Return uri -> (etag as it was planned last, number of the file)."""
        rows = self._run("select uri, etag, file from plan_files").fetchall()
        return {uri: (etag, file) for uri, etag, file in rows}

    def add(self, samples: pa.Table) -> None:
        """Look at samples (SEEN) of one part of the plan, each shard once."""
        self._connection.register("seen", samples)
        self._run('insert into seen_rows select hash("row"), file from seen')
        columns = 'plan, place, number, file, position, "index", retry, "row", is_default'
        self._run(f"insert into seen_again select {columns} from seen semi join plan_again using (file)")
        self._connection.unregister("seen")

    def finish(self, parts: Iterable[pa.Table]) -> None:
        """Find the samples that do not count. `parts` are all samples again."""
        self._run(
            """create or replace table seen_names as select file, position, min("row") as name
            from seen_again where not is_default group by file, position"""
        )
        self._run(
            """create or replace table seen_shared as
            select 0 as plan, 0::bigint as place, 0 as number, 0::bigint as file, 0::bigint as position, '' as name
            limit 0"""
        )
        self._run("create or replace table seen_hashes as "
                  "select hash from seen_rows group by hash having min(file) <> max(file)")  # fmt: skip
        if self._count("seen_hashes"):
            for samples in parts:
                self._connection.register("seen", samples)
                self._run(
                    """insert into seen_shared by name
                    select plan, place, number, file, position, coalesce(name, "row") as name
                    from seen left join seen_names using (file, position)
                    where hash(coalesce(name, "row")) in (select hash from seen_hashes)"""
                )
                self._connection.unregister("seen")
        self._run(
            """create or replace table seen_last as select name, arg_max(file, [plan, place, file]) as file
            from (
                select name, shared.file, plan_spans.plan, plan_spans.place
                from seen_shared shared join plan_spans on (shared.file = plan_spans.file
                    and shared.position >= plan_spans.start and shared.position < plan_spans.stop)
                where is_first)
            group by name"""
        )
        self._run(
            """create or replace table seen_losers as
            select plan, place, number from seen_again
            qualify row_number() over (
                partition by file, position, "index" order by retry desc, plan desc, place desc, number) > 1
            union select plan, place, number from seen_shared shared join seen_last using (name)
            where shared.file <> seen_last.file order by all"""
        )

    def _count(self, table: str) -> int:
        ((count,),) = self._run(f"select count(*) from {table}").fetchall()
        return int(count)

    def counted(self, samples: pa.Table) -> pa.Table:
        """Return those of some samples that count, in their order. They are of one plan file."""
        if not len(samples) or not self._count("seen_losers"):
            return samples
        plan, first, last = samples["plan"][0], samples["place"][0], samples["place"][-1]
        self._connection.register("seen", samples)
        counted = self._connection.sql(
            f"""select * from seen anti join (
                select place, number from seen_losers where plan = {plan} and place between {first} and {last})
            using (place, number) order by place, number"""
        ).to_arrow_table()
        self._connection.unregister("seen")
        return counted
