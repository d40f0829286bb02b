"""Comma-separated values with a header (.csv, .csv.gz), quoted as RFC 4180 says.

Lines without any value are no rows. An empty cell is a missing value, because CSV has no other way to express one.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from jointdit.errors import RowError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.row_offsets import RowOffsets, Scan
from pipelines.stages.readers.rows import RawRow, check_unique
from pipelines.stages.readers.text_lines import (
    BOM,
    MAX_LINE_BYTES,
    OFFSET_EVERY,
    bounded_lines,
    check_encoding,
    open_undamaged,
)

Record = list[str] | csv.Error
csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # process-wide; rows.py limits each field


class _Unclosed(csv.Error):
    """A quote that is not closed within MAX_LINE_BYTES or the file, so that the next records cannot be found."""


class _Lines:
    """The lines of a stream as text, with the number of lines and bytes so far. Invalid UTF-8 becomes surrogates."""

    def __init__(self, stream: BinaryIO, offset: int = 0, number: int = 0) -> None:
        stream.seek(offset)
        self._lines, self.offset, self.number = bounded_lines(stream), offset, number
        self.begun = 0  # bytes read before the current record

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, length = next(self._lines)
        self.offset += length
        self.number += 1
        if length > MAX_LINE_BYTES:
            if b'"' in line or self.offset - length > self.begun:  # the next line may be inside a quote
                raise _Unclosed
            raise csv.Error(f"line of {length} bytes, more than the limit of {MAX_LINE_BYTES >> 20} MiB")
        if self.offset - self.begun > MAX_LINE_BYTES:
            raise _Unclosed
        return line.removeprefix(BOM).decode("utf-8", "surrogateescape")  # concatenated files have marks inside


def _records(lines: _Lines) -> Iterator[Record]:
    """Yield the records of the lines. A record that cannot be parsed is its error, and the next line starts a new one.

    An unclosed quote is the last record. A closing quote must be followed by a comma or the end of the line. Otherwise
    a quote that is closed by the next opening quote would join two records into a wrong one.
    """
    reader = csv.reader(lines, strict=True)
    while True:
        first, lines.begun = lines.number + 1, lines.offset
        try:
            record = next(reader)
        except StopIteration:
            return
        except _Unclosed:
            yield _Unclosed(
                f"a quote is opened in line {first} or soon after and not closed within {MAX_LINE_BYTES >> 20} MiB"
            )
            return
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                yield _Unclosed(f"a quote that is opened in line {first} or soon after is never closed")
                return
            yield _explained(error, lines.number + 1 - first)
        else:
            if record:
                yield record


def _explained(error: csv.Error, lines: int) -> csv.Error:
    if "new-line character" in str(error):
        return csv.Error("carriage returns inside: end each line with a line feed")
    return csv.Error(f"{error}, in a record of {lines} lines" if lines > 1 else error)


@dataclass
class _Table:
    """What this process knows about one version of a file."""

    header: tuple[str, ...]
    offsets: RowOffsets  # of its records
    lines: RowOffsets  # the number of lines before these records
    unclosed: str = ""  # what is wrong with the last record if it hides what follows


@lru_cache(maxsize=64)
def _table(uri: str, etag: str) -> _Table:
    with open_undamaged(uri, etag) as stream:
        check_encoding(stream, uri)
        lines = _Lines(stream)
        header = next(_records(lines), [])
    if isinstance(header, csv.Error):
        raise RowError(f"{uri} has a header line that is not valid CSV ({header}).")
    if not header:
        raise RowError(f"{uri} has no header line, which names the columns of a CSV file.")
    return _Table(tuple(header), RowOffsets(OFFSET_EVERY, lines.offset), RowOffsets(OFFSET_EVERY, lines.number))


@contextlib.contextmanager
def _open_records(file: SourceFile | Span, table: _Table) -> Iterator[tuple[BinaryIO, Scan[Record]]]:
    """Open a file to scan its records."""

    def scan(number: int, offset: int) -> Iterator[tuple[Record, int]]:
        lines = _Lines(stream, offset, table.lines.at_or_before(number)[1])
        for record in _records(lines):
            number += 1
            table.lines.add(number, lines.number)
            if isinstance(record, _Unclosed):
                table.unclosed = str(record)
            yield record, lines.offset

    with open_undamaged(file.uri, file.etag) as stream:
        yield stream, scan


def count(file: SourceFile | Span) -> int:
    """Return the number of records. Raises RowError without a header, or where an unclosed quote hides the rest."""
    table = _table(file.uri, file.etag)
    number = table.offsets.count(lambda: _open_records(file, table))
    if table.unclosed:
        raise RowError(f"{file.uri} is not valid CSV: {table.unclosed}, so all that follows cannot be read.")
    return number


def missing_fields(file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return fields that the header does not name. Raises RowError where it names a column twice."""
    header = _table(file.uri, file.etag).header
    check_unique(file, header, fields)
    return [name for name, column in fields.items() if column not in header], list(header)


def rows(file: SourceFile | Span, wanted: Sequence[range], fields: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield records by number. A record with too few or too many values is bad, as its values may be misplaced."""
    table = _table(file.uri, file.etag)
    check_unique(file, table.header, fields)
    columns = {name: table.header.index(column) for name, column in fields.items() if column in table.header}
    for number, record in table.offsets.read(wanted, lambda: _open_records(file, table)):
        yield _raw_row(number, record, len(table.header), columns)


def _raw_row(number: int, record: Record, width: int, columns: Mapping[str, int]) -> RawRow:
    if isinstance(record, csv.Error):
        return RawRow(number, error=f"record is not valid CSV ({record}).")
    if len(record) != width:
        return RawRow(number, error=f"record has {len(record)} values where the header names {width}.")
    return RawRow(number, {name: record[column] or None for name, column in columns.items()})
