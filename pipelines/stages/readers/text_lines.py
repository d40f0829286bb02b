"""Text with one prompt per line (.txt, .txt.gz), and lines by number."""

from __future__ import annotations

import codecs
import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import BinaryIO

from jointdit.errors import RowError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.opening import BUFFER_BYTES, open_text
from pipelines.stages.readers.row_offsets import RowOffsets, Scan
from pipelines.stages.readers.rows import RawRow

MAX_LINE_BYTES = 1 << 24  # a small .gz can decompress to one endless line
OFFSET_EVERY = 1024  # rows between two offsets that are kept
UNPACK_ERRORS = (EOFError, OSError, zlib.error)  # of gzip; faults of the store are no OSError here
BOM = b"\xef\xbb\xbf"
LOOKED_AT_BYTES = 4096  # to detect the encoding
MARKS = {  # in this order: one begins with another
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
Line = tuple[bytes, int]  # with its end, and its length in bytes


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


def bounded_lines(stream: BinaryIO) -> Iterator[Line]:
    """Yield lines in order. A line above MAX_LINE_BYTES is truncated, and its length is that of the whole line."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        length, piece = len(line), line
        while not piece.endswith(b"\n") and (piece := stream.readline(BUFFER_BYTES)):
            length += len(piece)
        yield line, length


@lru_cache(maxsize=64)
def line_offsets(uri: str, etag: str) -> RowOffsets:
    """Return what this process knows about the lines of one version of a file."""
    return RowOffsets(OFFSET_EVERY)


@contextlib.contextmanager
def open_undamaged(uri: str, etag: str) -> Iterator[BinaryIO]:
    """Like `open_text`, and raises RowError, here and inside, where a .gz is damaged."""
    try:
        with open_text(uri, etag) as stream:
            yield stream
    except UNPACK_ERRORS as error:
        raise RowError(f"{uri} is damaged ({error}).") from error


@contextlib.contextmanager
def _open_lines(file: SourceFile | Span) -> Iterator[tuple[BinaryIO, Scan[Line]]]:
    """Open a file to scan its lines."""

    def scan(number: int, offset: int) -> Iterator[tuple[Line, int]]:
        if number == 0:
            check_encoding(stream, file.uri)
        stream.seek(offset)
        for line, length in bounded_lines(stream):
            offset += length
            yield (line, length), offset

    with open_undamaged(file.uri, file.etag) as stream:
        yield stream, scan


def count_lines(file: SourceFile | Span) -> int:
    """Return the number of lines of a file."""
    return line_offsets(file.uri, file.etag).count(lambda: _open_lines(file))


def read_lines(file: SourceFile | Span, wanted: Sequence[range]) -> Iterator[tuple[int, bytes | RowError]]:
    """Yield (number, line without its end, or what is wrong with it) for the existing lines of sorted ranges."""
    offsets = line_offsets(file.uri, file.etag)
    for number, (line, length) in offsets.read(wanted, lambda: _open_lines(file)):
        if length > MAX_LINE_BYTES:
            yield number, RowError(f"line has {length} bytes, more than the limit of {MAX_LINE_BYTES >> 20} MiB.")
        else:
            yield number, line.rstrip(b"\r\n").removeprefix(BOM)  # concatenated files have marks inside


def count(file: SourceFile | Span) -> int:
    """Return the number of lines. Blank lines count, because each line is a row."""
    return count_lines(file)


def missing_fields(file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """A line is a prompt and has no other field."""
    return [name for name in fields if name != "prompt"], []


def rows(file: SourceFile | Span, wanted: Sequence[range], fields: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield each line as a prompt."""
    for number, line in read_lines(file, wanted):
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
