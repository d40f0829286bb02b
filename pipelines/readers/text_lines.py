"""Text, one prompt a line (.txt, .txt.gz); and lines by number, for the formats made of lines.

Lines are found through a sparse index of byte offsets, made by one streaming pass and kept in each process, so that a
shard deep in a large file does not read all before it again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from jointdit.errors import RowError
from pipelines.readers.opening import open_text
from pipelines.readers.rows import RawRow
from pipelines.records import SourceFile, Span

INDEX_EVERY = 1024  # rows between two remembered offsets
UNPACK_ERRORS = (EOFError, OSError, zlib.error)  # of gzip; the store's own faults are no OSError here
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowIndex:
    """How many rows a file has, and the byte offsets of rows 0, 1024, 2048, ..."""

    rows: int
    offsets: tuple[int, ...]


@lru_cache(maxsize=64)
def index_lines(uri: str, etag: str) -> RowIndex:
    """The index of one version of a file of lines. Raises RowError for a damaged .gz."""
    offsets, offset, number = [], 0, 0
    try:
        with open_text(uri) as stream:
            for line in stream:
                if number % INDEX_EVERY == 0:
                    offsets.append(offset)
                offset += len(line)
                number += 1
    except UNPACK_ERRORS as error:
        raise RowError(f"{uri} is damaged ({error}).") from error
    return RowIndex(number, tuple(offsets))


def read_lines(file: SourceFile | Span, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(number, line without its end) for lines [start, stop), those that exist."""
    index = index_lines(file.uri, file.etag)
    if start >= min(stop, index.rows):
        return
    block = start // INDEX_EVERY
    try:
        with open_text(file.uri) as stream:
            stream.seek(index.offsets[block])
            lines = islice(stream, start - block * INDEX_EVERY, min(stop, index.rows) - block * INDEX_EVERY)
            for number, line in enumerate(lines, start):
                line = line.rstrip(b"\r\n")
                yield number, line.removeprefix(BOM) if number == 0 else line
    except UNPACK_ERRORS as error:
        raise RowError(f"{file.uri} is damaged ({error}).") from error


def count(file: SourceFile | Span) -> int:
    """Lines of the file, blank ones too: each is a row."""
    return index_lines(file.uri, file.etag).rows


def lacking(file: SourceFile | Span, wanted: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """A line is a prompt and nothing else."""
    return [name for name in wanted if name != "prompt"], []


def rows(file: SourceFile | Span, start: int, stop: int, wanted: Mapping[str, str]) -> Iterator[RawRow]:
    """Each line as a prompt."""
    for number, line in read_lines(file, start, stop):
        try:
            yield RawRow(number, {"prompt": line.decode("utf-8")})
        except UnicodeDecodeError:
            yield RawRow(number, error="line is not valid UTF-8 text.")
