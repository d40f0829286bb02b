"""Pairs from tables: a published dataset, or a table with images, depth and captions.

The readers of task `encode` read them. No row is skipped: a row that cannot be used ends the training with an error
that names it. (Task `encode` quarantines such rows, and its output trains faster.)
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from jointdit.errors import InputError, RowError
from jointdit.geometry.depth import disparity_from_depth
from jointdit.training.pairs import Bucket, Pair, fit_to_bucket
from pipelines.records import BadRow, Row, SourceFile
from pipelines.spec.job import InputSpec
from pipelines.stages.readers import check_columns, count_rows, format_of, list_files
from pipelines.stages.readers.opening import open_input
from pipelines.stages.readers.row_addresses import stored_value
from pipelines.stages.readers.rows import RawRow, build_row, columns_of, default_id

BLOCK_ROWS = 64  # in files without row groups
CACHED_ROWS = 1024  # encoded rows in memory
TASK = "encode"
RowT = TypeVar("RowT")


class CachedBlocks(Generic[RowT]):
    """Rows, numbered over blocks that are read whole; the most recently used blocks are cached."""

    def __init__(self, lengths: Sequence[int], read: Callable[[int], list[RowT]]) -> None:
        """lengths: rows of each block. read: reads a block by its number."""
        self._first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._read = read
        self._cache: OrderedDict[int, list[RowT]] = OrderedDict()

    def row(self, number: int) -> tuple[RowT, int]:
        """Return a row, and the number of its block."""
        block = int(np.searchsorted(self._first, number, side="right")) - 1
        if block not in self._cache:
            rows = self._read(block)
            while self._cache and sum(map(len, self._cache.values())) + len(rows) > CACHED_ROWS:
                self._cache.popitem(last=False)
            self._cache[block] = rows
        self._cache.move_to_end(block)
        return self._cache[block][number - int(self._first[block])], block


class TablePairs:
    """Pairs, numbered over the rows of all files of `data.uri`."""

    def __init__(self, spec_input: InputSpec) -> None:
        """Read the layout of the files. Raises InputError if a file or a column is missing."""
        self.input = spec_input
        self.files = list_files(spec_input, TASK)
        check_columns(self.files, spec_input, TASK)
        self.layout: list[tuple[SourceFile, int, int]] = []  # blocks: file, rows [start, stop)
        for file in self.files:
            start = 0
            for rows in _groups(file, count_rows(file, spec_input)):
                self.layout.append((file, start, start + rows))
                start += rows
        self._rows = CachedBlocks(self.blocks(), self._read_block)

    def blocks(self) -> Sequence[int]:
        """Return the number of rows of each row group, or of blocks of 64 lines."""
        return [stop - start for _, start, stop in self.layout]

    def sizes(self) -> Sequence[Bucket]:
        """Return (height, width) in pixels of all images, from their headers; read once."""
        return self._sizes

    @cached_property
    def _sizes(self) -> list[Bucket]:
        found: list[Bucket] = []
        for file, start, stop in self.layout:
            for raw in format_of(file).rows(file, [range(start, stop)], {"image": self.input.columns.image}):
                try:
                    if raw.error:
                        raise RowError(raw.error)
                    data = stored_value(raw.values.get("image"), "image", file.uri)
                    with Image.open(io.BytesIO(data if isinstance(data, bytes) else b"")) as image:
                        width, height = image.size
                except (RowError, OSError) as error:
                    raise _cannot_train(default_id(file, raw.position), str(error)) from error
                found.append((height, width))
        return found

    def read(self, numbers: Sequence[int], bucket: Bucket) -> Sequence[Pair]:
        """Decode rows and fit them to the bucket. Raises InputError for the first row that cannot be used."""
        return [self._pair(number, bucket) for number in numbers]

    def _pair(self, number: int, bucket: Bucket) -> Pair:
        raw, block = self._rows.row(number)
        row = build_row(raw, self.layout[block][0], self.input, TASK)
        if isinstance(row, BadRow):
            raise _cannot_train(row.id, row.error)
        try:
            return fit_to_bucket(self._as_pair(row), bucket)
        except ValueError as error:  # RowError is one
            raise _cannot_train(row.id, str(error)) from error

    def _as_pair(self, row: Row) -> Pair:
        assert row.rgb is not None
        assert row.depth is not None
        assert row.prompt is not None
        assert self.input.depth is not None
        return Pair(row.rgb, disparity_from_depth(row.depth, row.depth_valid, self.input.depth.kind), row.prompt)

    def _read_block(self, block: int) -> list[RawRow]:
        file, start, stop = self.layout[block]
        rows = list(format_of(file).rows(file, [range(start, stop)], columns_of(self.input, TASK)))
        if len(rows) != stop - start:
            raise InputError(f"{file.uri} has fewer rows than at the start of training: restore the file.")
        return rows


def _groups(file: SourceFile, rows: int) -> list[int]:
    """Return the number of rows of each block of a file."""
    if not file.uri.lower().endswith(".parquet"):
        return [min(BLOCK_ROWS, rows - start) for start in range(0, rows, BLOCK_ROWS)]
    with open_input(file.uri, random_access=True) as stream:
        metadata = pq.ParquetFile(stream).metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _cannot_train(row: str, reason: str) -> InputError:
    return InputError(f"data: row {row} cannot be trained on: {reason.rstrip('.')}.")
