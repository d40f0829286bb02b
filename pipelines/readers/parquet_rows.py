"""Parquet (.parquet), by row groups: only the groups and columns that are asked for are fetched.

A damaged page makes the rest of its row group bad rows, and the next group is read on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jointdit.errors import RowError
from pipelines.readers.opening import check_bytes, open_input
from pipelines.readers.pictures import MAX_PIXELS
from pipelines.readers.rows import RawRow
from pipelines.records import SourceFile, Span

BATCH_ROWS = 16  # of pictures in memory at once
ARROW_ERRORS = (pa.ArrowException, OSError)  # damage; the store's own faults are no OSError here


def count(file: SourceFile | Span) -> int:
    """Rows by the footer. Raises RowError where there is none."""
    with _opened(file.uri) as (parquet, _):
        return int(parquet.metadata.num_rows)


def lacking(file: SourceFile | Span, wanted: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Fields that the schema does not have."""
    with _opened(file.uri) as (_, names):
        pass
    return [name for name, column in wanted.items() if column not in names], names


def rows(file: SourceFile | Span, start: int, stop: int, wanted: Mapping[str, str]) -> Iterator[RawRow]:
    """Rows by number, from the row groups that hold them."""
    with _opened(file.uri) as (parquet, names):
        columns = {name: column for name, column in wanted.items() if column in names}
        first = 0
        for group in range(parquet.num_row_groups):
            end = first + parquet.metadata.row_group(group).num_rows
            if max(start, first) < min(stop, end):
                yield from _group_rows(parquet, group, first, max(start, first), min(stop, end), columns)
            first = end


def texts(file: SourceFile | Span, column: str, at_once: int) -> Iterator[pa.LargeStringArray]:
    """A column of texts or whole numbers as texts, in order. Ends early where that is not what it holds, or damaged."""
    with _opened(file.uri) as (parquet, _):
        kind = parquet.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            return
        try:
            for batch in parquet.iter_batches(at_once, columns=[column], use_threads=False):
                found = batch.column(0).cast(pa.large_string())
                found.validate(full=True)  # UTF-8
                yield found
        except ARROW_ERRORS:
            return


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """The file and the names of its columns."""
    with open_input(uri, random_access=True) as stream:
        try:
            parquet = pq.ParquetFile(stream)
            names = parquet.schema_arrow.names
            groups = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        except (*ARROW_ERRORS, UnicodeDecodeError) as error:
            raise RowError(f"{uri} is not a readable Parquet file ({_reason(error)}).") from error
        if min(groups, default=0) < 0 or sum(groups) != parquet.metadata.num_rows:
            raise RowError(f"{uri} is not a readable Parquet file (its row groups do not add up to its rows).")
        yield parquet, names


def _group_rows(
    parquet: pq.ParquetFile, group: int, first: int, start: int, stop: int, columns: Mapping[str, str]
) -> Iterator[RawRow]:
    position = first
    try:
        names = sorted(set(columns.values()))
        if not names:
            yield from (RawRow(number) for number in range(start, stop))
            return
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
            for offset in range(batch.num_rows):
                if start <= position < stop:
                    yield _raw_row(batch, offset, position, columns)
                position += 1
            if position >= stop:
                return
    except ARROW_ERRORS as error:
        sentence = f"row group {group} is damaged ({_reason(error)})."
        yield from (RawRow(number, error=sentence) for number in range(max(position, start), stop))
    else:
        sentence = f"row group {group} has fewer rows than its header says."
        yield from (RawRow(number, error=sentence) for number in range(max(position, start), stop))


def _raw_row(batch: pa.RecordBatch, offset: int, position: int, columns: Mapping[str, str]) -> RawRow:
    try:
        return RawRow(
            position, {name: _value(batch.column(column)[offset], column) for name, column in columns.items()}
        )
    except UnicodeDecodeError:
        return RawRow(position, error="row holds text that is not valid UTF-8.")
    except RowError as error:
        return RawRow(position, error=str(error))


def _value(cell: pa.Scalar, column: str) -> Any:
    """A cell as Python objects. Runs of equal values are packed into a few bytes: its size is looked at first."""
    parts = [cell]
    while parts:
        part = parts.pop()
        if isinstance(part, pa.StructScalar) and part.is_valid:
            parts += part.values()
        elif isinstance(part, pa.BinaryScalar | pa.StringScalar | pa.LargeBinaryScalar | pa.LargeStringScalar):
            check_bytes(part.as_buffer().size if part.is_valid else 0, f"column {column}")
        elif isinstance(part, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar) and part.is_valid:
            values = part.values
            while (
                pa.types.is_nested(values.type) and hasattr(values, "flatten") and not pa.types.is_struct(values.type)
            ):
                values = values.flatten()
            if len(values) > MAX_PIXELS:
                limit = MAX_PIXELS // 10**6
                raise RowError(f"column {column} holds {len(values)} numbers, more than the limit of {limit} million.")
    return cell.as_py()


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
