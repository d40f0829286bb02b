"""Keep many objects in a temporary file, some in memory at a time."""

from __future__ import annotations

import itertools
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import pyarrow as pa

Item = TypeVar("Item")


def chunks_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`, the last one shorter."""
    remaining = iter(items)
    while chunk := list(itertools.islice(remaining, size)):
        yield chunk


class Shelf(Generic[Item]):
    """Objects in the order in which they were added. The file is removed at the end of the `with` block."""

    def __enter__(self) -> Self:
        self._file = tempfile.TemporaryFile(prefix="jointdit-shelf-")
        self._sizes: list[tuple[int, int]] = []  # bytes in the file, and of the pickle, of each chunk
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, items: Sequence[Item]) -> None:
        """Add some objects."""
        data = pickle.dumps(items, pickle.HIGHEST_PROTOCOL)
        packed = pa.compress(data, codec="lz4", asbytes=True)
        self._file.write(packed)
        self._sizes.append((len(packed), len(data)))

    def __iter__(self) -> Iterator[Item]:
        """Yield all objects."""
        start = 0
        for packed, size in self._sizes:
            self._file.seek(start)
            start += packed
            yield from pickle.loads(pa.decompress(self._file.read(packed), size, codec="lz4", asbytes=True))
