"""Read statistics and sample rows for the card from some of a version's tables.

All tables of a small version are read, and evenly spread ones of a large version. For scores, one column of a table is
read with a few requests. For images and depth, the first rows of few tables are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jointdit.errors import RowError
from jointdit.geometry.depth import Intrinsics, decode_depth_png, metric_depth
from pipelines.ledger.entries import Outcome
from pipelines.ledger.versions import Version
from pipelines.stages.readers.images import decode_image
from pipelines.stages.sinks.parquet import data_schema, image_bytes
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.storage import Storage

T = TypeVar("T")
Disparity = NDArray[np.float32]
FILE_OUTCOMES: tuple[Outcome, ...] = ("kept", "rejected")  # outcomes with pixels and scores
SCORED_TABLES = 2048  # at most so many tables have their scores and columns read
SCORED_SAMPLES = 500_000  # about as many values of each score are held in memory at most
DEPTH_TABLES, DEPTH_ROWS = 16, 128  # at most so many tables, and images in all of them, have their depth read
SHOWN_TABLES, SHOWN_ROWS = 4, 12  # at most so many tables, and rows in all of them, are shown
DEPTH_PIXELS = 1024  # of each image, at most
SHOWN_COLUMNS = ["id", "prompt", "rgb", "depth", "fx", "fy", "cx", "cy", "z_near", "z_far", "params"]
DEPTH_COLUMNS = SHOWN_COLUMNS[3:]


@dataclass(frozen=True)
class SampleRow:
    """A kept sample that the card shows."""

    id: str
    prompt: str | None
    rgb: NDArray[np.uint8] | None  # (H, W, 3); None where only its address is stored
    disparity: NDArray[np.float32]  # (H, W)
    valid: NDArray[np.bool_] | None  # (H, W); None where every pixel has a depth
    intrinsics: Intrinsics
    z_near: float  # metres
    z_far: float

    @property
    def metres(self) -> NDArray[np.float32]:
        """Depth (H, W) in metres, NaN in holes."""
        depth = metric_depth(self.disparity, self.z_near, self.z_far)
        return depth if self.valid is None else np.where(self.valid, depth, np.float32(np.nan))


@dataclass(frozen=True)
class SampledTables:
    """What was read from the sampled tables of a version."""

    schemas: Mapping[Outcome, pa.Schema]  # all columns that occur
    scores: Mapping[str, NDArray[np.float32]]  # score -> finite values of kept and rejected samples
    scored: int  # samples whose scores were read
    scored_tables: tuple[int, int] = (0, 0)  # (tables whose scores were read, tables of the version)
    rows: Sequence[SampleRow] = ()
    disparity: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))  # (n) of some pixels
    metres: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))  # (n) of the same pixels
    depth_images: int = 0  # number of images that have these pixels


def read_tables(storage: Storage, version: Version) -> SampledTables:
    """Read what the card needs from a version's tables."""
    spec = version.spec
    schemas: dict[Outcome, pa.Schema] = {outcome: data_schema(spec, outcome) for outcome in FILE_OUTCOMES}
    tables = [(outcome, path) for outcome in FILE_OUTCOMES for path in version.files_of(outcome)]
    samples = sum(version.counts.get(outcome, 0) for outcome in FILE_OUTCOMES)
    chosen = spread(tables, scored_tables(len(tables), samples))
    chunks: dict[str, list[NDArray[np.float32]]] = {}
    scored = 0
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for (outcome, _), scan in zip(chosen, pool.map(lambda table: _scan(storage, table[1]), chosen), strict=True):
            schemas[outcome] = _joined(schemas[outcome], scan.schema)
            scored += scan.rows
            for name, values in scan.scores.items():
                chunks.setdefault(name, []).extend(values)
        scores = {name: np.concatenate(values) for name, values in chunks.items()}
        schemas["quarantined"] = data_schema(spec, "quarantined")
        result = SampledTables(schemas, scores, scored, (len(chosen), len(tables)))
        if spec.task == "encode":
            return result
        kept = version.files_of("kept")
        shown = spread(kept, SHOWN_TABLES)
        count = math.ceil(SHOWN_ROWS / max(1, len(shown)))
        shown_rows = pool.map(lambda path: list(_rows(storage, path, count, SHOWN_COLUMNS)), shown)
        rows = [row for part in shown_rows for row in part][:SHOWN_ROWS]
        measured = spread(kept, DEPTH_TABLES)
        depth_count = math.ceil(DEPTH_ROWS / max(1, len(measured)))
        depth_pixels = pool.map(
            lambda path: [_pixels(row) for row in _rows(storage, path, depth_count, DEPTH_COLUMNS)], measured
        )
        pixels = [pair for part in depth_pixels for pair in part][:DEPTH_ROWS]
    if not pixels:
        return replace(result, rows=rows)
    disparity, metres = (np.concatenate(values) for values in zip(*pixels, strict=True))
    return replace(result, rows=rows, disparity=disparity, metres=metres, depth_images=len(pixels))


def scored_tables(tables: int, samples: int) -> int:
    """Return how many tables of a version have their scores read: all, unless tables or samples are too many."""
    return min(tables, SCORED_TABLES, max(1, SCORED_SAMPLES * tables // max(1, samples)))


def spread(items: Sequence[T], count: int) -> Sequence[T]:
    """Return `count` evenly spread items, the first among them, or all items if there are not more."""
    return items if len(items) <= count else [items[number * len(items) // count] for number in range(count)]


def _joined(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """Add what a file written under other settings has more: columns, and scores in `quality`."""
    for column in other:
        position = schema.get_field_index(column.name)
        if position < 0:
            schema = schema.append(column)
        elif pa.types.is_struct(column.type) and column.type != schema.field(position).type:
            known = list(schema.field(position).type)
            names = {score.name for score in known}
            more = [score for score in column.type if score.name not in names]
            schema = schema.set(position, pa.field(column.name, pa.struct([*known, *more])))
    return schema


@dataclass(frozen=True)
class Scan:
    """A table's columns and scores."""

    schema: pa.Schema
    rows: int
    scores: Mapping[str, Sequence[NDArray[np.float32]]]  # score -> finite values, in chunks


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


def _rows(storage: Storage, path: str, count: int, columns: Sequence[str]) -> Iterator[SampleRow]:
    """Yield the first rows of a table whose depth can be read. `validate` reports those that cannot be read."""
    with storage.open(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(count, columns=columns, use_threads=False):
            for record in batch.to_pylist():
                try:
                    yield _row(record)
                except RowError:
                    continue
            return


def _row(record: Mapping[str, Any]) -> SampleRow:
    disparity = decode_depth_png(record["depth"]["bytes"])
    has_holes = json.loads(record["params"] or "{}").get("valid_fraction", 1.0) < 1
    image = image_bytes(record.get("rgb"))
    return SampleRow(
        id=record.get("id", ""),
        prompt=record.get("prompt"),
        rgb=decode_image(image)[0] if image is not None else None,
        disparity=disparity,
        valid=disparity > 0 if has_holes else None,
        intrinsics=Intrinsics(*(record[name] for name in Intrinsics._fields)),
        z_near=record["z_near"],
        z_far=record["z_far"],
    )


def _pixels(row: SampleRow) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return disparity and metres of some pixels of a row, evenly spread, without holes."""
    inside = np.flatnonzero(row.valid if row.valid is not None else np.ones(row.disparity.shape, bool))
    chosen = inside[:: max(1, math.ceil(len(inside) / DEPTH_PIXELS))]
    return row.disparity.ravel()[chosen], row.metres.ravel()[chosen]
