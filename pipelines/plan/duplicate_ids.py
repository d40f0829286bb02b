"""Find duplicate row ids in bounded memory with one pass over the id column.

Each id becomes a 64-bit hash. Hashes are spilled to files by their highest bits, and each file is sorted by itself.
Equal neighbours are candidates. Only if there are any, the column is read again and the ids are compared, so a hash
collision is not reported. The hash is multilinear: the sum of the bytes times random numbers for their positions. Two
ids collide with a probability of 2^-57 (Carter and Wegman, Universal classes of hash functions, 1979).
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jointdit.errors import RowError
from pipelines.records import SourceFile
from pipelines.stages.readers import as_input_error, format_of, parquet_rows
from pipelines.stages.readers.rows import MAX_ID_CHARACTERS, default_id, read_id

if TYPE_CHECKING:
    from pipelines.spec.job import InputSpec

Hashes = NDArray[np.uint64]

IDS_AT_ONCE = 1 << 16  # ids that are hashed at once
HASHES_AT_ONCE = 1 << 20  # hashes that are sorted and spilled at once: 8 MB
SPILLS = 64  # files; of 100 million ids each holds 13 MB
MOST_CANDIDATES = 1000  # hashes whose ids are compared; more would only add examples
LONGEST_BYTES = 4 * MAX_ID_CHARACTERS + 64  # in UTF-8; a default id may be a little longer
NUMBERED = r":\d+$"  # matches ids that could be the default id of another file


def find_duplicate_ids(files: Sequence[SourceFile], spec_input: InputSpec, limit: int = 5) -> list[str]:
    """Return up to `limit` row ids that occur twice, in reading order. Of tables only the id column is read.

    Rows whose id cannot be read count by their default ids, under which they are quarantined. Raises InputError for a
    table that is damaged as a whole or missing.
    """
    column = spec_input.columns.id
    nameless: set[str] = set()  # paths of files without an id column, whose rows all have default ids
    with_ids: list[SourceFile] = []
    duplicates: list[str] = []
    for file in files:
        try:
            if not format_of(file).missing_fields(file, {"id": column})[0]:
                with_ids.append(file)
                continue
        except (RowError, FileNotFoundError) as error:
            raise as_input_error(error, file) from error
        if file.relative_path in nameless:  # the default ids of two files are either all equal or all different
            duplicates.append(default_id(file, 0))
        nameless.add(file.relative_path)
    if not with_ids or len(duplicates) >= limit:
        return duplicates[:limit]
    hashing = _Hashing(nameless)
    with tempfile.TemporaryDirectory(prefix="jointdit-ids-") as folder:
        spill = _Spill(Path(folder))
        for ids in _ids_of_all(with_ids, column):
            spill.add(hashing(ids))
            duplicates += hashing.defaults_in(ids)
            if len(duplicates) >= limit:
                return duplicates[:limit]
        candidates = spill.doubled()
    if not len(candidates):
        return duplicates
    seen: set[str] = set()
    for ids in _ids_of_all(with_ids, column):
        for text in ids.filter(pa.array(np.isin(hashing(ids), candidates))).to_pylist():
            if text in seen:
                duplicates.append(text)
            seen.add(text)
        if len(duplicates) >= limit:
            break
    return duplicates[:limit]


class _Hashing:
    """Hashes ids (n) to (n) with random numbers of its own."""

    def __init__(self, nameless: set[str]) -> None:
        random = np.random.default_rng(secrets.randbits(128))
        self._factors = random.integers(0, 1 << 64, LONGEST_BYTES, np.uint64)
        self._nameless = nameless

    def __call__(self, ids: pa.LargeStringArray) -> Hashes:
        offsets = np.frombuffer(ids.buffers()[1], np.int64)[ids.offset : ids.offset + len(ids) + 1]
        data = np.frombuffer(ids.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        starts = offsets[:-1] - offsets[0]
        places = np.arange(len(data)) - np.repeat(starts, np.diff(offsets))
        terms = (data.astype(np.uint64) + np.uint64(1)) * self._factors[places]
        return np.add.reduceat(terms, starts)

    def defaults_in(self, ids: pa.LargeStringArray) -> list[str]:
        """Return those ids that are default ids of rows in files without an id column."""
        if not self._nameless:
            return []
        numbered = ids.filter(pc.match_substring_regex(ids, NUMBERED)).to_pylist()
        return [text for text in numbered if text.rpartition(":")[0] in self._nameless]


class _Spill:
    """Hashes in memory, spilled to files by their highest bits once there are many."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer: list[Hashes] = []
        self._count = 0
        self._is_spilled = False

    def add(self, hashes: Hashes) -> None:
        self._buffer.append(hashes)
        self._count += len(hashes)
        if self._count >= HASHES_AT_ONCE:
            self._flush()

    def doubled(self) -> Hashes:
        """Return the hashes that occur twice, MOST_CANDIDATES at most."""
        if not self._is_spilled:
            return _doubled(np.concatenate(self._buffer) if self._buffer else np.empty(0, np.uint64))
        self._flush()
        doubled = np.empty(0, np.uint64)
        for path in sorted(self._folder.iterdir()):
            doubled = np.concatenate([doubled, _doubled(np.fromfile(path, np.uint64))])
            if len(doubled) >= MOST_CANDIDATES:
                break
        return doubled[:MOST_CANDIDATES]

    def _flush(self) -> None:
        if not self._buffer:
            return
        hashes = np.sort(np.concatenate(self._buffer))
        bounds = np.arange(1, SPILLS, dtype=np.uint64) * np.uint64((1 << 64) // SPILLS)
        for number, part in enumerate(np.split(hashes, np.searchsorted(hashes, bounds))):
            with (self._folder / f"{number:03d}").open("ab") as file:
                part.tofile(file)
        self._buffer, self._count, self._is_spilled = [], 0, True


def _doubled(hashes: Hashes) -> Hashes:
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:MOST_CANDIDATES]


def _ids_of_all(files: Sequence[SourceFile], column: str) -> Iterator[pa.LargeStringArray]:
    """Yield the ids of all rows, in order, as arrays without nulls and empty strings."""
    for file in files:
        try:
            yield from _ids_of(file, column)
        except (RowError, FileNotFoundError) as error:
            raise as_input_error(error, file) from error


def _ids_of(file: SourceFile, column: str) -> Iterator[pa.LargeStringArray]:
    source, position = format_of(file), 0
    count = source.count(file)
    if source is parquet_rows:
        for ids in parquet_rows.texts(file, column, IDS_AT_ONCE):
            if not _are_good(ids):
                break  # the rest is read row by row, so that a bad id does not affect its neighbours
            position += len(ids)
            yield ids
    texts: list[str] = []
    for raw in source.rows(file, [range(position, count)], {"id": column}):
        text = default_id(file, raw.position)
        if "id" in raw.values and not raw.error:
            with contextlib.suppress(RowError):
                text = read_id(raw.values["id"])
        texts.append(text)
        if len(texts) == IDS_AT_ONCE:
            yield pa.array(texts, pa.large_string())
            texts = []
    if texts:
        yield pa.array(texts, pa.large_string())


def _are_good(ids: pa.LargeStringArray) -> bool:
    """Return whether `read_id` accepts all ids as they are."""
    if ids.null_count or not len(ids):
        return False
    longest = pc.max(pc.binary_length(ids)).as_py()
    blank = pc.any(pc.equal(pc.utf8_trim_whitespace(ids), "")).as_py()
    return longest <= MAX_ID_CHARACTERS and not blank
