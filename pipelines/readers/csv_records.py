"""Comma-separated values with a header (.csv, .csv.gz), quoted as RFC 4180 says. Lines without any value are no rows.

An empty cell is a missing value: CSV has no other way to say so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import BinaryIO

from jointdit.errors import RowError
from pipelines.readers.opening import open_text
from pipelines.readers.rows import RawRow
from pipelines.readers.text_lines import BOM, INDEX_EVERY, MAX_LINE_BYTES, UNPACK_ERRORS, RowIndex, bounded_lines
from pipelines.records import SourceFile, Span

Record = list[str] | csv.Error


class _Lines:
    """The lines of a stream as text, counting the bytes given out. Bytes that are no UTF-8 become lone surrogates."""

    def __init__(self, stream: BinaryIO, offset: int) -> None:
        stream.seek(offset)
        self._lines, self.offset = bounded_lines(stream), offset

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, length = next(self._lines)
        if self.offset == 0 and line.startswith(BOM):
            line = line[len(BOM) :]
        self.offset += length
        if length > MAX_LINE_BYTES:
            raise csv.Error(f"line of {length} bytes, more than the limit of {MAX_LINE_BYTES >> 20} MiB")
        return line.decode("utf-8", "surrogateescape")


def _records(lines: _Lines) -> Iterator[Record]:
    """Records of the lines; one that cannot be parsed is its error, and the next line starts a new one."""
    reader = csv.reader(lines)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error
        else:
            if record:
                yield record


@lru_cache(maxsize=64)
def _index(uri: str, etag: str) -> tuple[tuple[str, ...], RowIndex]:
    """(header, index of the records after it) of one version of a file."""
    offsets, number = [], 0
    try:
        with open_text(uri) as stream:
            lines = _Lines(stream, 0)
            records = _records(lines)
            header = next(records, [])
            if isinstance(header, csv.Error) or not header:
                raise RowError(f"{uri} has no header line, which names the columns of a CSV file.")
            start = lines.offset
            for _ in records:
                if number % INDEX_EVERY == 0:
                    offsets.append(start)
                number, start = number + 1, lines.offset
    except UNPACK_ERRORS as error:
        raise RowError(f"{uri} is damaged ({error}).") from error
    return tuple(header), RowIndex(number, tuple(offsets))


def count(file: SourceFile | Span) -> int:
    """Records after the header. Raises RowError where there is no header."""
    return _index(file.uri, file.etag)[1].rows


def lacking(file: SourceFile | Span, wanted: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Fields that the header does not name."""
    header, _ = _index(file.uri, file.etag)
    return [name for name, column in wanted.items() if column not in header], list(header)


def rows(file: SourceFile | Span, start: int, stop: int, wanted: Mapping[str, str]) -> Iterator[RawRow]:
    """Records by number; one with too few or too many values is bad, because its values may sit in wrong columns."""
    header, index = _index(file.uri, file.etag)
    if start >= min(stop, index.rows):
        return
    block = start // INDEX_EVERY
    columns = {name: header.index(column) for name, column in wanted.items() if column in header}
    try:
        with open_text(file.uri) as stream:
            for number, record in enumerate(_records(_Lines(stream, index.offsets[block])), block * INDEX_EVERY):
                if number >= min(stop, index.rows):
                    return
                if number >= start:
                    yield _raw_row(number, record, len(header), columns)
    except UNPACK_ERRORS as error:
        raise RowError(f"{file.uri} is damaged ({error}).") from error


def _raw_row(number: int, record: Record, width: int, columns: Mapping[str, int]) -> RawRow:
    if isinstance(record, csv.Error):
        return RawRow(number, error=f"record is not valid CSV ({record}).")
    if len(record) != width:
        return RawRow(number, error=f"record has {len(record)} values where the header names {width}.")
    return RawRow(number, {name: record[column] or None for name, column in columns.items()})
