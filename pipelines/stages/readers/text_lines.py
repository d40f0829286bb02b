"""Text with one prompt per line (.txt, .txt.gz), and lines by number.

Lines are found through a sparse index of byte offsets. One streaming pass builds it, and each process caches it, so
that a shard deep in a large file does not read everything before it again.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from jointdit.errors import RowError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.opening import BUFFER_BYTES, open_text
from pipelines.stages.readers.rows import RawRow

MAX_LINE_BYTES = 1 << 24  # a small .gz can decompress to one endless line
INDEX_EVERY = 1024  # rows between two stored offsets
UNPACK_ERRORS = (EOFError, OSError, zlib.error)  # of gzip; faults of the store are no OSError here
BOM = b"\xef\xbb\xbf"
LOOKED_AT_BYTES = 4096  # to detect the encoding
MARKS = {  # in this order: one begins with another
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class RowIndex:
    """The number of rows of a file, and the byte offsets of rows 0, 1024, 2048, ..."""

    rows: int
    offsets: tuple[int, ...]


def check_encoding(stream: BinaryIO, uri: str) -> None:
    """Leave a stream at its start. Raises RowError for UTF-16 or UTF-32, whose lines end in another way.

    Without a byte order mark they are detected by NULs: nearly every second byte of European text is one.
    """
    head = stream.read(LOOKED_AT_BYTES)
    stream.seek(0)
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    pairs = len(head) // 2
    if encoding is None and max(head[0::2].count(0), head[1::2].count(0)) >= max(1, pairs / 2):
        encoding = "UTF-16 or UTF-32"
    if encoding is not None and pairs:
        raise RowError(f"{uri} is {encoding} text: write it again as UTF-8.")


def bounded_lines(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield (line with its end, length in bytes) in order. A line above MAX_LINE_BYTES is truncated."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        length, piece = len(line), line
        while not piece.endswith(b"\n") and (piece := stream.readline(BUFFER_BYTES)):
            length += len(piece)
        yield line, length


@lru_cache(maxsize=64)
def index_lines(uri: str, etag: str) -> RowIndex:
    """Return the index of one version of a file of lines. Raises RowError for a damaged .gz."""
    offsets, offset, number = [], 0, 0
    try:
        with open_text(uri) as stream:
            check_encoding(stream, uri)
            for _, length in bounded_lines(stream):
                if number % INDEX_EVERY == 0:
                    offsets.append(offset)
                offset += length
                number += 1
    except UNPACK_ERRORS as error:
        raise RowError(f"{uri} is damaged ({error}).") from error
    return RowIndex(number, tuple(offsets))


def read_lines(file: SourceFile | Span, start: int, stop: int) -> Iterator[tuple[int, bytes | RowError]]:
    """Yield (number, line without its end, or what is wrong with it) for the existing lines of [start, stop)."""
    index = index_lines(file.uri, file.etag)
    if start >= min(stop, index.rows):
        return
    block = start // INDEX_EVERY
    try:
        with open_text(file.uri) as stream:
            stream.seek(index.offsets[block])
            for number, (line, length) in enumerate(bounded_lines(stream), block * INDEX_EVERY):
                if number >= min(stop, index.rows):
                    return
                if number < start:
                    continue
                if length > MAX_LINE_BYTES:
                    error = RowError(f"line has {length} bytes, more than the limit of {MAX_LINE_BYTES >> 20} MiB.")
                    yield number, error
                    continue
                yield number, line.rstrip(b"\r\n").removeprefix(BOM)  # concatenated files have marks inside
    except UNPACK_ERRORS as error:
        raise RowError(f"{file.uri} is damaged ({error}).") from error


def count(file: SourceFile | Span) -> int:
    """Return the number of lines. Blank lines count, because each line is a row."""
    return index_lines(file.uri, file.etag).rows


def missing_fields(file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """A line is a prompt and has no other field."""
    return [name for name in fields if name != "prompt"], []


def rows(file: SourceFile | Span, start: int, stop: int, fields: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield each line as a prompt."""
    for number, line in read_lines(file, start, stop):
        if isinstance(line, RowError):
            yield RawRow(number, error=str(line))
            continue
        if b"\r" in line:
            yield RawRow(number, error="line has carriage returns inside: end each line with a line feed.")
            continue
        try:
            yield RawRow(number, {"prompt": line.decode("utf-8")})
        except UnicodeDecodeError:
            yield RawRow(number, error="line is not valid UTF-8 text: write it again as UTF-8.")
