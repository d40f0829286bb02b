"""Find which committed samples a version must hold, independently of ledger/counting.py, with DuckDB.

Only rows of the versions of files that count are looked at (scope.py). There are two reasons to leave out a sample of
them. Another shard makes the same (input version, position, index): the one with the highest retry counts, of several
the one that was planned last. Or another file that was planned later holds a row with its id, and that row counts. Only
samples for which this can be are compared: those of files that were planned again, and those whose row id, by its
hash, occurs in several files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import duckdb
import pyarrow as pa

from pipelines.dataset.validation.scope import CountedVersions
from pipelines.ledger.entries import PlannedShard

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
        ("of_plan", pa.int32()),  # the plan file of the version of the file that counts
        ("version", pa.int64()),  # number of the input version for which the row was planned
        ("position", pa.int64()),
        ("index", pa.int32()),
        ("round", pa.int32()),
        ("retry", pa.int32()),
        ("is_again", pa.bool_()),  # whether several shards may make samples of its file
        ("row", pa.string()),  # the id of its row, by this attempt
        ("is_default", pa.bool_()),  # whether that is the id of a row whose own id could not be read
    ]
)


class Recount:
    """The samples of the versions of files that count, and which of them do not count."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, versions: CountedVersions) -> None:
        """versions: the versions of files whose samples `add` is given."""
        self._connection, self._run, self.versions = connection, connection.execute, versions
        self._run("create or replace table seen_rows (hash ubigint, file bigint)")
        self._run(
            """create or replace table seen_again (plan integer, place bigint, number integer, version bigint,
            position bigint, "index" integer, retry integer, "row" varchar, is_default boolean)"""
        )

    def add(self, samples: pa.Table) -> None:
        """Look at samples (SEEN) of one part of the plan, each shard once."""
        self._run_with(
            samples,
            'insert into seen_rows select hash("row"), file from seen',
            "insert into seen_again by name select "
            'plan, place, number, version, position, "index", retry, "row", is_default from seen where is_again',
        )

    def add_absent(self, entries: Sequence[PlannedShard]) -> None:
        """Let retries without a commit that counts replace the samples that they name, so that none of these counts."""
        rows = [
            (entry.plan, entry.position, -1, self.versions.numbers[span.uri, span.etag], position, index, entry.retry)
            for entry in entries
            if entry.retry
            for span in entry.shard.spans
            for position in range(span.start, span.stop)
            for index in entry.indices
        ]
        names = ("plan", "place", "number", "version", "position", "index", "retry")
        columns = zip(*rows, strict=True) if rows else [()] * len(names)
        samples = pa.table({n: pa.array(c, SEEN.field(n).type) for n, c in zip(names, columns, strict=True)})
        self._run_with(samples, "insert into seen_again by name select *, true as is_default from seen")

    def _run_with(self, samples: pa.Table, *statements: str) -> None:
        if len(samples):
            self._connection.register("seen", samples)
            for sql in statements:
                self._run(sql)
            self._connection.unregister("seen")

    def finish(self, parts: Iterable[pa.Table]) -> None:
        """Find the samples that do not count. `parts` are all samples again."""
        self._run(
            """create or replace table seen_names as select version, position, min("row") as name
            from seen_again where not is_default group by version, position"""
        )
        self._run(
            """create or replace table seen_shared (plan integer, place bigint, number integer, file bigint,
            name varchar, place_of_row bigint[])"""
        )
        self._run("create or replace table seen_hashes as "
                  "select hash from seen_rows group by hash having min(file) <> max(file)")  # fmt: skip
        if self._count("seen_hashes"):
            for samples in parts:
                self._run_with(
                    samples,
                    """insert into seen_shared by name
                    select plan, place, number, file, coalesce(name, "row") as name,
                        if(round = 0 and retry = 0, [of_plan, plan, place], [0, 0, 0]) as place_of_row
                    from seen left join seen_names using (version, position)
                    where hash(coalesce(name, "row")) in (select hash from seen_hashes)""",
                )
        self._run(
            """create or replace table seen_last as
            select name, arg_max(file, list_append(place_of_row, file)) as file from seen_shared group by name"""
        )
        self._run(
            """create or replace table seen_losers as
            select plan, place, number from seen_again
            qualify row_number() over (
                partition by version, position, "index" order by retry desc, plan desc, place desc, number) > 1
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
