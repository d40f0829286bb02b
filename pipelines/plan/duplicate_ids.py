"""Find duplicate row ids in bounded memory with DuckDB.

The id column is read once, and hashes of the ids are counted. Only if a hash occurs twice, the column is read again and
the ids of such hashes are compared, so a hash collision is not reported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import RowError
from pipelines.ledger.carried import base_path
from pipelines.records import SourceFile
from pipelines.stages.readers import as_input_error, format_of, parquet_rows
from pipelines.stages.readers.rows import MAX_ID_CHARACTERS, default_id, read_id
from pipelines.store.joins import joins

if TYPE_CHECKING:
    from pipelines.spec.job import InputSpec

IDS_AT_ONCE = 1 << 16
MEMORY = 1 << 27  # bytes for DuckDB; more is not faster
HASH = "hash(id)"
NUMBERED = r":\d+$"  # matches ids that could be the default id of another file


def find_duplicate_ids(files: Sequence[SourceFile], spec_input: InputSpec, limit: int = 5) -> list[str]:
    """Return up to `limit` row ids that occur twice, in reading order. Of tables only the id column is read.

    Rows whose id cannot be read count by their default ids, under which they are quarantined. Raises InputError for a
    table that is damaged as a whole or missing.
    """
    column = spec_input.columns.id
    nameless: set[str] = set()  # paths of files without an id column, whose rows all have default ids
    with_ids: list[SourceFile] = []
    duplicates: list[str] = []
    for file in files:
        try:
            if not format_of(file).missing_fields(file, {"id": column})[0]:
                with_ids.append(file)
                continue
        except (RowError, FileNotFoundError) as error:
            raise as_input_error(error, file) from error
        if file.relative_path in nameless:  # the default ids of two files are either all equal or all different
            duplicates.append(default_id(file, 0))
        nameless.add(file.relative_path)
    if not with_ids or len(duplicates) >= limit:
        return duplicates[:limit]
    with joins(MEMORY) as connection:
        connection.execute("create temp table hashes (hash ubigint)")
        for ids in _ids_of_all(with_ids, column):
            _insert(connection, f"insert into hashes select {HASH} from batch", ids)
            duplicates += _defaults_in(ids, nameless)
            if len(duplicates) >= limit:
                return duplicates[:limit]
        connection.execute("create temp table doubled as select hash from hashes group by hash having count(*) > 1")
        if connection.execute("from doubled limit 1").fetchall():
            duplicates += _second_ones(connection, _ids_of_all(with_ids, column), limit)
    return duplicates[:limit]


def _second_ones(
    connection: duckdb.DuckDBPyConnection, all_ids: Iterator[pa.LargeStringArray], limit: int
) -> list[str]:
    """Return up to `limit` ids that occur twice, in the order of their second occurrences."""
    connection.execute("create temp table suspects (id varchar, place bigint)")
    first = 0
    for ids in all_ids:
        places = pa.array(np.arange(first, first + len(ids)))
        _insert(connection, f"insert into suspects from batch semi join doubled on {HASH} = hash", ids, place=places)
        first += len(ids)
    seconds = connection.execute(
        """select id from suspects qualify row_number() over (partition by id order by place) = 2
        order by place limit ?""",
        [limit],
    )
    return [identifier for (identifier,) in seconds.fetchall()]


def _insert(connection: duckdb.DuckDBPyConnection, sql: str, ids: pa.LargeStringArray, **columns: pa.Array) -> None:
    """Run a statement that reads `batch`: the column id, and others by their names."""
    connection.register("batch", pa.table({"id": ids, **columns}))
    connection.execute(sql)


def _defaults_in(ids: pa.LargeStringArray, nameless: set[str]) -> list[str]:
    """Return those ids that are default ids of rows in the files `nameless`, which have no id column."""
    if not nameless:
        return []
    numbered = ids.filter(pc.match_substring_regex(ids, NUMBERED)).to_pylist()
    return [text for text in numbered if base_path(text.rpartition(":")[0]) in nameless]


def _ids_of_all(files: Sequence[SourceFile], column: str) -> Iterator[pa.LargeStringArray]:
    """Yield the ids of all rows, in order, as arrays without nulls and empty strings."""
    for file in files:
        try:
            yield from _ids_of(file, column)
        except (RowError, FileNotFoundError) as error:
            raise as_input_error(error, file) from error


def _ids_of(file: SourceFile, column: str) -> Iterator[pa.LargeStringArray]:
    source, position = format_of(file), 0
    count = source.count(file)
    if source is parquet_rows:
        for ids in parquet_rows.texts(file, column, IDS_AT_ONCE):
            if not _are_good(ids):
                break  # the rest is read row by row, so that a bad id does not affect its neighbours
            position += len(ids)
            yield ids
    texts: list[str] = []
    for raw in source.rows(file, [range(position, count)], {"id": column}):
        text = default_id(file, raw.position)
        if "id" in raw.values and not raw.error:
            with contextlib.suppress(RowError):
                text = read_id(raw.values["id"])
        texts.append(text)
        if len(texts) == IDS_AT_ONCE:
            yield pa.array(texts, pa.large_string())
            texts = []
    if texts:
        yield pa.array(texts, pa.large_string())


def _are_good(ids: pa.LargeStringArray) -> bool:
    """Return whether `read_id` accepts all ids as they are."""
    if ids.null_count or not len(ids):
        return False
    longest = pc.max(pc.binary_length(ids)).as_py()
    blank = pc.any(pc.equal(pc.utf8_trim_whitespace(ids), "")).as_py()
    has_nul = pc.any(pc.match_substring(ids, "\0")).as_py()
    return longest <= MAX_ID_CHARACTERS and not blank and not has_nul
