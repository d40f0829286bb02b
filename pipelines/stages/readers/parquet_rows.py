"""Parquet (.parquet): of the wanted columns, only row groups with wanted rows are read, up to the last of these rows.

A column is read page by page, so memory holds one page of it and not its part of the row group. A damaged page makes
the rest of its row group bad rows. Reading continues with the next group.
"""

from __future__ import annotations

import contextlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jointdit.errors import RowError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.images import MAX_PIXELS
from pipelines.stages.readers.opening import BUFFER_BYTES, check_bytes, open_input
from pipelines.stages.readers.rows import RawRow, check_unique
from pipelines.store.safe_text import reason_of

BATCH_ROWS = 16  # of images in memory at once
ARROW_ERRORS = (pa.ArrowException, OSError)  # damage; faults of the store are no OSError here
CONVERSION_ERRORS = (ValueError, ArithmeticError, LookupError, TypeError, NotImplementedError)  # of cells


def count(file: SourceFile | Span) -> int:
    """Return the number of rows in the footer. Raises RowError where there is none."""
    with _opened(file.uri) as (parquet, _):
        return int(parquet.metadata.num_rows)


def missing_fields(file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return fields that the schema lacks."""
    with _opened(file.uri) as (_, names):
        check_unique(file, names, fields)
    return [name for name, column in fields.items() if column not in names], names


def rows(file: SourceFile | Span, wanted: Sequence[range], fields: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield rows by number from the row groups that hold them."""
    with _opened(file.uri) as (parquet, names):
        check_unique(file, names, fields)
        columns = {name: column for name, column in fields.items() if column in names}
        first = 0
        for group in range(parquet.num_row_groups):
            end = first + parquet.metadata.row_group(group).num_rows
            if here := _between(wanted, first, end):
                yield from _group_rows(parquet, group, first, here, columns)
            first = end


def _between(wanted: Sequence[range], first: int, end: int) -> list[range]:
    """Return the parts of sorted, disjoint ranges that lie in [first, end)."""
    parts = []
    for positions in wanted[bisect_right(wanted, first, key=lambda positions: positions.stop) :]:
        if positions.start >= end:
            break
        parts.append(range(max(positions.start, first), min(positions.stop, end)))
    return [part for part in parts if part]


def texts(file: SourceFile | Span, column: str, at_once: int) -> Iterator[pa.LargeStringArray]:
    """Yield a column of strings or integers as strings, in order. Ends early for other types, and at damage."""
    with _opened(file.uri) as (parquet, _):
        kind = parquet.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            return
        try:
            for batch in parquet.iter_batches(at_once, columns=[column], use_threads=False):
                strings = batch.column(0).cast(pa.large_string())
                strings.validate(full=True)  # UTF-8
                yield strings
        except ARROW_ERRORS:
            return


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """Open a file. Yields it and the names of its columns."""
    with open_input(uri, random_access=True) as stream:
        try:
            parquet = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
            names = parquet.schema_arrow.names
            groups = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        except (*ARROW_ERRORS, UnicodeDecodeError) as error:
            _raise_lack_of_memory(error)
            raise RowError(f"{uri} is not a readable Parquet file ({reason_of(error)}).") from error
        if min(groups, default=0) < 0 or sum(groups) != parquet.metadata.num_rows:
            raise RowError(f"{uri} is not a readable Parquet file (its row groups do not add up to its rows).")
        yield parquet, names


def _group_rows(
    parquet: pq.ParquetFile, group: int, first: int, wanted: Sequence[range], columns: Mapping[str, str]
) -> Iterator[RawRow]:
    """Yield the wanted rows of a row group that begins with row `first`."""
    left = chain.from_iterable(wanted)
    due, position = next(left, None), first
    try:
        names = sorted(set(columns.values()))
        if not names:
            yield from (RawRow(number) for number in chain.from_iterable(wanted))
            return
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
            while due is not None and due < position + batch.num_rows:
                yield _raw_row(batch, due - position, due, columns)
                due = next(left, None)
            if due is None:
                return
            position += batch.num_rows
    except ARROW_ERRORS as error:
        _raise_lack_of_memory(error)
        sentence = f"row group {group} is damaged ({reason_of(error)})."
    else:
        sentence = f"row group {group} has fewer rows than its header says."
    while due is not None:
        yield RawRow(due, error=sentence)
        due = next(left, None)


def _raise_lack_of_memory(error: BaseException) -> None:
    """Raise a MemoryError again where this node lacks memory, not where damaged data claims more than it has."""
    if isinstance(error, MemoryError):
        claimed = re.search(r"size (\d+)", str(error))
        if claimed is None or int(claimed[1]) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise error


def _raw_row(batch: pa.RecordBatch, offset: int, position: int, columns: Mapping[str, str]) -> RawRow:
    try:
        return RawRow(
            position, {name: _value(batch.column(column)[offset], column) for name, column in columns.items()}
        )
    except RowError as error:
        return RawRow(position, error=str(error))


def _value(cell: pa.Scalar, column: str) -> Any:
    """Return a cell as Python objects. Of a struct only the fields of an encoded image are read.

    Runs of equal values take few bytes in a file, so sizes are checked before anything is expanded.
    """
    while cell.is_valid and isinstance(cell, pa.ExtensionScalar | pa.DictionaryScalar | pa.RunEndEncodedScalar):
        cell = cell.value
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.StructScalar):
        return _struct(cell, column)
    if isinstance(cell, pa.BinaryScalar | pa.StringScalar | pa.LargeBinaryScalar | pa.LargeStringScalar):
        check_bytes(cell.as_buffer().size, f"column {column}")
    elif isinstance(values := getattr(cell, "values", None), pa.Array):  # of all kinds of lists
        _check_list(values, column)
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        raise RowError(f"column {column} holds text that is not valid UTF-8.") from None
    except CONVERSION_ERRORS as error:  # a date beyond the year 9999, an unknown time zone
        raise RowError(f"column {column} holds a {cell.type} that cannot be read ({reason_of(error)}).") from error


def _struct(cell: pa.StructScalar, column: str) -> dict[str, Any]:
    names = [cell.type.field(number).name for number in range(cell.type.num_fields)]
    fields = {}
    for name in ("bytes", "path"):
        if names.count(name) > 1:
            raise RowError(f"column {column} is a struct with {names.count(name)} fields named {name!r}.")
        if name in names:
            fields[name] = _value(cell[names.index(name)], column)
    return fields


def _check_list(values: pa.Array, column: str) -> None:
    """Raise RowError where a nested list holds more than MAX_PIXELS numbers."""
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type) and hasattr(values, "flatten"):
        values = values.flatten()
    if len(values) > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise RowError(f"column {column} holds {len(values)} numbers, more than the limit of {limit} million.")
