"""Row ids that occur twice, among any number of rows in a bounded memory: a pass over the id column, and no more.

Each id becomes a hash of 64 bits. Hashes are spilled to files by their highest bits, and each file is sorted by itself:
equal neighbours are candidates. Only if there are any, the column is read again and texts are compared, so that two ids
with one hash are no duplicate. The hash is multilinear, the sum of bytes times random numbers of their places: two ids
have one hash with a chance of 2^-57 (Carter and Wegman, Universal classes of hash functions, 1979).
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

IDS_AT_ONCE = 1 << 16  # hashed
HASHES_AT_ONCE = 1 << 20  # sorted and spilled: 8 MB
SPILLS = 64  # files: of 100 million ids each holds 13 MB
MOST_CANDIDATES = 1000  # hashes that are looked at again; where there are more, these tell enough
LONGEST_BYTES = 4 * MAX_ID_CHARACTERS + 64  # in UTF-8; a default id may be a little longer
NUMBERED = r":\d+$"  # an id that could be another file's default id


def find_duplicate_ids(files: Sequence[SourceFile], spec_input: InputSpec, limit: int = 5) -> list[str]:
    """Up to `limit` row ids that occur twice, in reading order. Reads the id column of tables, and no more.

    Rows whose id cannot be read count by their default ids, under which they are quarantined. Raises InputError for a
    table that is damaged as a whole or gone.
    """
    column = spec_input.columns.id
    nameless: set[str] = set()  # paths of files without ids, whose rows all have default ids
    with_ids: list[SourceFile] = []
    duplicates: list[str] = []
    for file in files:
        try:
            if not format_of(file).lacking(file, {"id": column})[0]:
                with_ids.append(file)
                continue
        except (RowError, FileNotFoundError) as error:
            raise as_input_error(error, file) from error
        if file.relative_path in nameless:  # the default ids of two files are all equal or all different
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
    """Ids (n) -> hashes (n), by random numbers of its own."""

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
        """Ids that are default ids of rows in files without ids."""
        if not self._nameless:
            return []
        numbered = ids.filter(pc.match_substring_regex(ids, NUMBERED)).to_pylist()
        return [text for text in numbered if text.rpartition(":")[0] in self._nameless]


class _Spill:
    """Hashes in memory until there are many, then in files by their highest bits."""

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
        """Hashes that came twice, MOST_CANDIDATES at most."""
        if not self._is_spilled:
            return _doubled(np.concatenate(self._buffer) if self._buffer else np.empty(0, np.uint64))
        self._flush()
        found = np.empty(0, np.uint64)
        for path in sorted(self._folder.iterdir()):
            found = np.concatenate([found, _doubled(np.fromfile(path, np.uint64))])
            if len(found) >= MOST_CANDIDATES:
                break
        return found[:MOST_CANDIDATES]

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
    """The ids of all rows, in order, in arrays without nulls and empty texts."""
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
                break  # the rest goes row by row, where each is told from its neighbours
            position += len(ids)
            yield ids
    texts: list[str] = []
    for raw in source.rows(file, position, count, {"id": column}):
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
    """Whether `read_id` would take each of them as it is."""
    if ids.null_count or not len(ids):
        return False
    longest = pc.max(pc.binary_length(ids)).as_py()
    blank = pc.any(pc.equal(pc.utf8_trim_whitespace(ids), "")).as_py()
    return longest <= MAX_ID_CHARACTERS and not blank
