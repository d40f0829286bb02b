"""Find the rows of which keep_best lets a partial version decide nothing new, because more samples of them are to come.

These are rows with a retry or a round that the version does not cover, and rows with a rejected sample for which no
round is planned yet. What is planned is judged here as in a whole version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.dataset.validation.parts import part_of, planned_again
from pipelines.dataset.validation.recount import Recount
from pipelines.dataset.validation.scope import Scope
from pipelines.ledger.entries import Commit, PlannedShard
from pipelines.plan.regeneration import is_worth_a_seed
from pipelines.spec.job import JobSpec
from pipelines.store.shelf import Shelf

OPEN = pa.schema([("version", pa.int64()), ("start", pa.int64()), ("stop", pa.int64())])
ROUNDS = pa.schema([*OPEN, ("round", pa.int32()), ("samples", pa.int64())])
LOST = pa.schema([("version", pa.int64()), ("position", pa.int64()), ("round", pa.int32())])


class Waiting:
    """The rows of one partial version that wait."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, samples: Shelf[pa.Table], scope: Scope, spec: JobSpec
    ) -> None:
        """Take an empty database, an empty shelf, and the scope and spec of the version."""
        self._connection, self._run, self._samples = connection, connection.execute, samples
        self._scope, self._spec = scope, spec
        self._again = planned_again(scope.ledger, scope.tables, scope.as_planned)
        self._recount = Recount(connection, scope.as_planned)
        self._run("create table open_spans (version bigint, start bigint, stop bigint)")
        self._run("create table rounds (version bigint, start bigint, stop bigint, round integer, samples bigint)")
        self._run("create table lost (version bigint, position bigint, round integer)")

    def add(self, entries: Sequence[PlannedShard], commits: Mapping[str, Commit]) -> None:
        """Add planned shards of one plan file, and the commits of those that the version covers."""
        absent = [entry for entry in entries if not entry.is_first and not self._scope.has(entry)]
        self._add("open_spans", OPEN, [row for entry in absent for row in self._spans_of(entry)])
        if not self._spec.quality.regenerate:
            return
        rounds = [entry for entry in entries if entry.shard.round and not entry.retry]
        rows = [(*row, entry.shard.round, len(entry.indices)) for entry in rounds for row in self._spans_of(entry)]
        self._add("rounds", ROUNDS, rows)
        once = [entry for entry in entries if (entry.plan, entry.position) not in self._again]
        samples = part_of(once, commits, self._scope.as_planned).samples
        self._recount.add_absent(absent)
        self._recount.add(samples)
        self._samples.add([samples])

    def _spans_of(self, entry: PlannedShard) -> list[tuple[int, int, int]]:
        numbers = self._scope.as_planned.numbers
        return [(numbers[span.uri, span.etag], span.start, span.stop) for span in entry.shard.spans]

    def _add(self, table: str, schema: pa.Schema, rows: Iterable[tuple[int, ...]]) -> None:
        if chosen := list(rows):
            columns = zip(*chosen, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            self._connection.register("rows_to_add", pa.table(arrays, schema=schema))
            self._run(f"insert into {table} select * from rows_to_add")
            self._connection.unregister("rows_to_add")

    def finish(self) -> None:
        """Find the rows, once all is added."""
        self._recount.finish(self._samples)
        for samples in self._samples:
            rejected = self._recount.counted(samples)
            rejected = rejected.filter(pc.equal(rejected["made"], "rejected"))
            rejected = rejected.filter(pc.less(rejected["round"], self._spec.quality.regenerate))
            names = ("version", "position", "round", "made_reasons")
            rows = zip(*(rejected[name].to_pylist() for name in names), strict=True)
            lost = [(*row, n + 1) for *row, n, reasons in rows if is_worth_a_seed(reasons or (), self._spec.task)]
            self._add("lost", LOST, lost)
        self._run(
            """create table open_rows as
            select version, unnest(range(start, stop)) as position from open_spans
            union
            select version, position from (
                select version, position, round, count(*) as needed from lost group by all)
            left join (
                select version, position, round, sum(samples) as planned from (
                    select version, unnest(range(start, stop)) as position, round, samples from rounds)
                group by all) using (version, position, round)
            where needed > coalesce(planned, 0)"""
        )

    def mask(self, samples: pa.Table) -> NDArray[np.bool_]:
        """Return which samples (SEEN) are of rows that wait (n)."""
        mask = np.zeros(len(samples), bool)
        if len(samples):
            rows = samples.select(["version", "position"]).append_column("place", pa.array(np.arange(len(samples))))
            self._connection.register("seen", rows)
            found = self._run("select place from seen semi join open_rows using (version, position)").fetchnumpy()
            self._connection.unregister("seen")
            mask[np.asarray(found["place"], np.int64)] = True
        return mask
