"""Match the rows of a changed file with the rows that were made of it, in bounded memory with DuckDB.

Rows match by id and content hash. Rows without an id match by content alone, the k-th of equal ones to the k-th, so a
file that was sorted anew, or has more rows, keeps all rows that it had.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.store.joins import joins

ROWS_AT_ONCE = 1 << 16
KEPT_ROWS = """
    select *, row_number() over (partition by id, high, low order by place) as copy from (
        select place, max(id) as id, min(high) as high, min(low) as low from {0} group by place
        having bool_and(is_known) and min(high) = max(high) and min(low) = max(low)
    )
"""


@dataclass
class RowBatch:
    """Some rows of a file. A row may occur several times; it matches only if its contents are known and equal."""

    places: list[int]  # row numbers
    ids: list[str]  # empty where a row has none of its own
    contents: list[str]  # content hashes, empty where they are unknown


@dataclass(frozen=True)
class Matches:
    """The rows of a file that were made before, as runs in the order of the file, and the number of others."""

    at: NDArray[np.int64]  # (n) first row of a run in the file
    made_at: NDArray[np.int64]  # (n) its place among the rows that were made
    rows: NDArray[np.int64]  # (n)
    changed: int  # rows of the file in place of made ones
    gone: int  # made rows without a row in the file


def match_rows(made: Iterable[RowBatch], new: Iterable[RowBatch], count: int) -> Matches:
    """Match the rows that were made, each at its place in the file as it was, with the `count` rows of the new file.

    Raises:
        PermanentError: the memory or the temporary folder is too small.
    """
    with joins() as connection:
        for name, batches in (("made", made), ("listed", new)):
            connection.execute(
                f"create temp table {name} (place bigint, id ubigint, high ubigint, low ubigint, is_known boolean)"
            )
            for batch in batches:
                connection.register("batch", _table_of(batch))
                connection.execute(
                    f"insert into {name} select place, if(id = '', 0, hash(id)), high, low, is_known from batch"
                )
        connection.execute(
            f"""create temp table pairs as select listed.place as listed_at, made.place as made_at
            from ({KEPT_ROWS.format("listed")}) as listed join ({KEPT_ROWS.format("made")}) as made
            using (id, high, low, copy)"""
        )
        at, made_at, rows = _runs(connection)
        gone = connection.execute(
            "select distinct place, id from made where place not in (select made_at from pairs) order by place"
        ).fetchnumpy()
        changed = connection.execute(
            """select count(distinct id) from listed where id > 0 and place not in (select listed_at from pairs)
            and id in (select id from made where place not in (select made_at from pairs))"""
        ).fetchone()
    assert changed is not None
    without_id = np.unique(np.asarray(gone["place"])[np.asarray(gone["id"]) == 0])
    replaced = int(changed[0]) + _replaced(at, made_at, rows, count, without_id)
    return Matches(at, made_at, rows, replaced, len(np.unique(np.asarray(gone["place"]))) - replaced)


def _table_of(batch: RowBatch) -> pa.Table:
    is_known = [bool(content) for content in batch.contents]
    data = bytes.fromhex("".join(content or "0" * 32 for content in batch.contents))
    high, low = np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2).T
    columns = {"place": batch.places, "id": batch.ids, "high": high, "low": low, "is_known": is_known}
    types = (pa.int64(), pa.string(), pa.uint64(), pa.uint64(), pa.bool_())
    return pa.table({name: pa.array(column, kind) for (name, column), kind in zip(columns.items(), types, strict=True)})


def _runs(connection: duckdb.DuckDBPyConnection) -> tuple[NDArray[np.int64], ...]:
    """Return the pairs as runs of rows that lie together in both files: at, made_at, rows."""
    reader = connection.sql("select listed_at, made_at from pairs order by listed_at").to_arrow_reader(ROWS_AT_ONCE)
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # first pairs of runs
    last, count = (-2, -2), 0
    ends: list[NDArray[np.int64]] = []  # numbers of pairs before each run
    for batch in reader:
        at, made_at = (batch.column(number).to_numpy() for number in range(2))
        breaks = (np.diff(at, prepend=last[0]) != 1) | (np.diff(made_at, prepend=last[1]) != 1)
        first = np.flatnonzero(breaks)
        parts.append((at[first], made_at[first]))
        ends.append(first + count)
        last, count = (int(at[-1]), int(made_at[-1])), count + len(at)
    if not parts:
        return tuple(np.zeros(0, np.int64) for _ in range(3))
    starts = np.concatenate([*ends, [count]])
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), np.diff(starts)


def _replaced(
    at: NDArray[np.int64],
    made_at: NDArray[np.int64],
    rows: NDArray[np.int64],
    count: int,
    gone: NDArray[np.int64],
) -> int:
    """Count rows without an id that were changed: new ones between two runs where rows without an id are gone.

    Args:
        gone: (k) places of the made rows without an id that are gone, sorted.
    """
    new = np.concatenate([at, [count]]) - np.concatenate([[0], at + rows])
    first = np.searchsorted(gone, np.concatenate([[0], made_at + rows]))
    last = np.searchsorted(gone, np.concatenate([made_at, [np.iinfo(np.int64).max]]))
    return int(np.minimum(new, np.maximum(last - first, 0)).sum())
