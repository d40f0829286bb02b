"""Byte offsets of rows that are found by reading: lines, records, members of an archive.

Offsets are collected while a file is read for its rows, and each process caches them. So a file is never read for its
offsets alone, a shard deep in a file starts at the nearest row that this process has passed, and counting continues
where reading ended.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, TypeVar

from pipelines.stages.readers.opening import read_until

RowT = TypeVar("RowT")
Scan = Callable[[int, int], Iterator[tuple[RowT, int]]]  # (row number, its offset) -> (row, offset of the next), ...
OpenScan = Callable[[], AbstractContextManager[tuple[BinaryIO, Scan[RowT]]]]  # the file's stream, and what reads it


class RowOffsets:
    """Offsets of rows 0, `every`, 2 * `every`, ... of one version of a file, as far as it was read."""

    def __init__(self, every: int, first: int = 0) -> None:
        """`first` is the offset of row 0."""
        self.total: int | None = None  # rows of the file, once its end was read
        self._every = every
        self._offsets = array("q", [first])
        self._last = (0, first)  # number and offset of the row after the last one that was read
        self._lock = threading.Lock()

    def add(self, row: int, offset: int) -> None:
        """Add the offset of the row that follows a row."""
        self._last = (row, offset)
        if row % self._every == 0:
            with self._lock:
                if row == len(self._offsets) * self._every:
                    self._offsets.append(offset)

    def at_or_before(self, row: int) -> tuple[int, int]:
        """Return (number, offset) of the last known row that is not after `row`."""
        place, last = min(row // self._every, len(self._offsets) - 1), self._last
        return last if place * self._every < last[0] <= row else (place * self._every, self._offsets[place])

    def at_or_after(self, row: int) -> int | None:
        """Return the offset of the first known row that is not before `row`, None if there is none."""
        place = -(-row // self._every)
        return self._offsets[place] if place < len(self._offsets) else None

    def count(self, open_scan: OpenScan[RowT]) -> int:
        """Return the number of rows. Reads on from the last known row, unless the end was read before."""
        if self.total is None:
            number, offset = self.at_or_before(sys.maxsize)
            with open_scan() as (_, scan):
                for _, after in scan(number, offset):
                    number, offset = number + 1, after
                    if number % self._every == 0:
                        self.add(number, offset)
            self.add(number, offset)
            self.total = number
        return self.total

    def read(self, wanted: Sequence[range], open_scan: OpenScan[RowT]) -> Iterator[tuple[int, RowT]]:
        """Yield (number, row) for the existing rows of sorted, disjoint ranges, in one pass."""
        with open_scan() as (stream, scan):
            rows: Iterator[tuple[RowT, int]] = iter(())
            number = -1  # of the row that `rows` yields next
            for positions in wanted:
                if not positions:
                    continue
                if self.total is not None and positions.start >= self.total:
                    return
                known, offset = self.at_or_before(positions.start)
                if known > number:
                    rows, number = scan(known, offset), known
                read_until(stream, self.at_or_after(positions.stop))
                for row, after in rows:
                    number += 1
                    if number % self._every == 0 or number == positions.stop:
                        self.add(number, after)
                    if number > positions.start:
                        yield number - 1, row
                    if number == positions.stop:
                        break
                else:
                    self.total = number
                    return
