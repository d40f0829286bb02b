"""What the card looks at: all of a version's tables up to a number, and from there on evenly spread ones.

Of scores one column of a table is read, a few requests; of images and depth, the first rows of few tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jointdit.errors import RowError
from jointdit.geometry.depth import Intrinsics, decode_depth_png, metric_depth
from pipelines.ledger.entries import Outcome
from pipelines.ledger.versions import Version
from pipelines.spec.job import JobSpec, load_spec
from pipelines.stages.readers.images import decode_image
from pipelines.stages.sinks.parquet import data_schema
from pipelines.store.storage import Storage

T = TypeVar("T")
FILE_OUTCOMES: tuple[Outcome, ...] = ("kept", "rejected")  # that have pixels and scores
SCORED_TABLES = 2048  # whose scores and columns are read, at most
SCORED_SAMPLES = 500_000  # about as many scores of a kind are held in memory, at most
DEPTH_TABLES, DEPTH_ROWS = 16, 128  # tables, and images in all of them, whose depth is read
SHOWN_TABLES, SHOWN_ROWS = 4, 12  # tables, and rows in all of them, that are shown
READERS = 16  # tables at once
DEPTH_PIXELS = 1024  # of each image, at most
SHOWN_COLUMNS = ["id", "prompt", "rgb", "depth", "fx", "fy", "cx", "cy", "z_near", "z_far", "params"]


@dataclass(frozen=True)
class SeenRow:
    """A kept sample that is shown."""

    id: str
    prompt: str | None
    rgb: NDArray[np.uint8] | None  # (H, W, 3); None where only its address is kept
    disparity: NDArray[np.float32]  # (H, W)
    valid: NDArray[np.bool_] | None  # (H, W); None where every pixel has a depth
    intrinsics: Intrinsics
    z_near: float  # metres
    z_far: float

    @property
    def metres(self) -> NDArray[np.float32]:
        """Depth (H, W), NaN in holes."""
        depth = metric_depth(self.disparity, self.z_near, self.z_far)
        return depth if self.valid is None else np.where(self.valid, depth, np.float32(np.nan))


@dataclass(frozen=True)
class Seen:
    """What was found in the tables that were looked at."""

    schemas: Mapping[Outcome, pa.Schema]  # all columns that occur
    scores: Mapping[str, NDArray[np.float32]]  # finite ones of kept and rejected samples, by name
    scored: int  # samples whose scores were read
    scored_tables: tuple[int, int] = (0, 0)  # tables whose scores were read, and tables that there are
    rows: Sequence[SeenRow] = ()
    disparity: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))  # of some pixels
    metres: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    depth_images: int = 0  # whose pixels those are


def spec_of(version: Version) -> JobSpec:
    """The spec of the run that published the version."""
    return load_spec(version.spec)


def read_tables(storage: Storage, version: Version) -> Seen:
    """Read what the card needs of a version's tables."""
    spec = spec_of(version)
    schemas: dict[Outcome, pa.Schema] = {outcome: data_schema(spec, outcome) for outcome in FILE_OUTCOMES}
    chunks: dict[str, list[NDArray[np.float32]]] = {}
    scored = 0
    tables = [(outcome, path) for outcome in FILE_OUTCOMES for path in version.files_of(outcome)]
    with ThreadPoolExecutor(READERS) as pool:
        chosen = spread(tables, scored_tables(len(tables), sum(version.counts.get(each, 0) for each in FILE_OUTCOMES)))
        for (outcome, _), scan in zip(chosen, pool.map(lambda each: _scan(storage, each[1]), chosen), strict=True):
            schemas[outcome] = _joined(schemas[outcome], scan.schema)
            scored += scan.rows
            for name, values in scan.scores.items():
                chunks.setdefault(name, []).extend(values)
        scores = {name: np.concatenate(values) for name, values in chunks.items()}
        looked_into = len(chosen), len(tables)
        schemas["quarantined"] = data_schema(spec, "quarantined")
        if spec.task == "encode":
            return Seen(schemas, scores, scored, looked_into)
        kept = version.files_of("kept")
        shown, local_headers = spread(kept, SHOWN_TABLES), spread(kept, DEPTH_TABLES)
        count, depth_count = (
            math.ceil(n / max(1, len(t))) for n, t in ((SHOWN_ROWS, shown), (DEPTH_ROWS, local_headers))
        )
        tables_of_rows = pool.map(lambda path: list(_rows(storage, path, count, SHOWN_COLUMNS)), shown)
        rows = [row for found in tables_of_rows for row in found][:SHOWN_ROWS]
        tables_of_pixels = pool.map(
            lambda path: [_pixels(row) for row in _rows(storage, path, depth_count, SHOWN_COLUMNS[3:])], local_headers
        )
        pixels = [pair for found in tables_of_pixels for pair in found][:DEPTH_ROWS]
    disparity, metres = (np.concatenate([pair[i] for pair in pixels] or [np.empty(0, np.float32)]) for i in (0, 1))
    return Seen(schemas, scores, scored, looked_into, rows, disparity, metres, len(pixels))


def scored_tables(tables: int, samples: int) -> int:
    """How many of a version's tables have their scores read: all, until tables or samples are too many."""
    return min(tables, SCORED_TABLES, max(1, SCORED_SAMPLES * tables // max(1, samples)))


def spread(items: Sequence[T], count: int) -> Sequence[T]:
    """`count` of the items, or all where there are no more, evenly spread, the first among them."""
    return items if len(items) <= count else [items[number * len(items) // count] for number in range(count)]


def _joined(wanted: pa.Schema, found: pa.Schema) -> pa.Schema:
    """A schema with what a file written under other settings has more: columns, and scores in `quality`."""
    for column in found:
        position = wanted.get_field_index(column.name)
        if position < 0:
            wanted = wanted.append(column)
        elif pa.types.is_struct(column.type) and column.type != wanted.field(position).type:
            known = list(wanted.field(position).type)
            more = [each for each in column.type if each.name not in {old.name for old in known}]
            wanted = wanted.set(position, pa.field(column.name, pa.struct([*known, *more])))
    return wanted


@dataclass(frozen=True)
class Scan:
    """A table's columns and scores."""

    schema: pa.Schema
    rows: int
    scores: Mapping[str, Sequence[NDArray[np.float32]]]  # finite ones, in pieces


def _scan(storage: Storage, path: str) -> Scan:
    scores: dict[str, list[NDArray[np.float32]]] = {}
    with storage.open(path) as file:
        table = pq.ParquetFile(file)
        has_scores = "quality" in table.schema_arrow.names
        for batch in table.iter_batches(columns=["quality"], use_threads=False) if has_scores else ():
            quality = batch.column(0)
            for number, score in enumerate(quality.type):
                values = quality.flatten()[number].drop_null().to_numpy(zero_copy_only=False)
                scores.setdefault(score.name, []).append(values[np.isfinite(values)].astype(np.float32))
        return Scan(table.schema_arrow, table.metadata.num_rows, scores)


def _rows(storage: Storage, path: str, count: int, columns: Sequence[str]) -> Iterator[SeenRow]:
    """The first rows of a table whose depth can be read; `validate` tells about those that cannot."""
    with storage.open(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(count, columns=columns, use_threads=False):
            for record in batch.to_pylist():
                try:
                    yield _row(record)
                except RowError:
                    continue
            return


def _row(record: Mapping[str, Any]) -> SeenRow:
    disparity = decode_depth_png(record["depth"]["bytes"])
    has_holes = json.loads(record["params"] or "{}").get("valid_fraction", 1.0) < 1
    image = record.get("rgb")
    return SeenRow(
        id=record.get("id", ""),
        prompt=record.get("prompt"),
        rgb=decode_image(image["bytes"])[0] if image and image["bytes"] is not None else None,
        disparity=disparity,
        valid=disparity > 0 if has_holes else None,
        intrinsics=Intrinsics(*(record[name] for name in Intrinsics._fields)),
        z_near=record["z_near"],
        z_far=record["z_far"],
    )


def _pixels(row: SeenRow) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Disparity and metres of some pixels of a row, evenly spread, without holes."""
    inside = np.flatnonzero(row.valid if row.valid is not None else np.ones(row.disparity.shape, bool))
    chosen = inside[:: max(1, math.ceil(len(inside) / DEPTH_PIXELS))]
    return row.disparity.ravel()[chosen], row.metres.ravel()[chosen]
