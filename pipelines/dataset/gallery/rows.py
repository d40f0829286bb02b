"""Read the rows of a gallery from the tables of a version, one at a time.

Columns are taken as they are: `quality` has the scores, `rgb` and `depth` the images, and every other column of one
value per row is shown as a fact. So a new score or column appears without a change here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.gallery.selection import shares, spread
from pipelines.ledger.entries import OUTCOMES, Outcome
from pipelines.ledger.versions import Version
from pipelines.stages.sinks.parquet import image_bytes
from pipelines.store.storage import Storage

BATCH_ROWS = 16
READ_BUFFER = 1 << 20  # bytes; without it Arrow reads a whole column of a row group, up to 100 MB of images
NAMED = ("id", "prompt", "rgb", "depth", "quality", "reasons", "pointcloud", "params", "error", "traceback")
CAMERA = ("fx", "fy", "cx", "cy", "width", "height", "z_near", "z_far")


@dataclass(frozen=True)
class GalleryRow:
    """One sample of a gallery. Fields that its outcome does not have are empty."""

    id: str
    outcome: Outcome
    prompt: str = ""
    reasons: Sequence[str] = ()  # why it was rejected, or the error for which it was quarantined
    scores: Mapping[str, float | None] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)  # shown as they are
    rgb: bytes | None = None  # an encoded image
    depth: bytes | None = None  # 16-bit PNG of relative disparity
    has_holes: bool = False  # whether 0 is a hole of the depth map
    camera: Sequence[float] = ()  # the values of CAMERA; empty where one is missing
    pointcloud: str = ""  # path relative to the dataset
    traceback: str = ""


def read_rows(storage: Storage, version: Version, limit: int) -> Iterator[GalleryRow]:
    """Yield at most `limit` rows, kept ones first, in the order of the version (selection.py)."""
    for outcome, count in _counts(version, limit):
        chosen = (file for file in version.iter_files() if file.outcome == outcome)
        for table, rows in spread(chosen, version.size_of(outcome).rows, count):
            with storage.open(table.path) as file:
                yield from _first_rows(file, outcome, rows)


def _counts(version: Version, limit: int) -> list[tuple[Outcome, int]]:
    chosen = shares({outcome: version.size_of(outcome).rows for outcome in OUTCOMES}, limit)
    return [(outcome, chosen[outcome]) for outcome in OUTCOMES]


def _first_rows(file: Any, outcome: Outcome, count: int) -> Iterator[GalleryRow]:
    parquet = pq.ParquetFile(file, buffer_size=READ_BUFFER)
    columns = [column.name for column in parquet.schema_arrow if column.name in NAMED or _is_single(column.type)]
    for batch in parquet.iter_batches(min(count, BATCH_ROWS), columns=columns, use_threads=False):
        for record in batch.slice(0, count).to_pylist():
            count -= 1
            yield _row(record, outcome)
        if count <= 0:
            return


def _is_single(kind: pa.DataType) -> bool:
    """Return whether a column holds one printable value per row."""
    return any(
        test(kind) for test in (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    )


def _row(record: Mapping[str, Any], outcome: Outcome) -> GalleryRow:
    parameters = _parameters(record.get("params"))
    camera = [record.get(name) for name in CAMERA]
    facts = {name: value for name, value in record.items() if name not in NAMED} | parameters
    error = record.get("error")
    return GalleryRow(
        id=record["id"],
        outcome=outcome,
        prompt=record.get("prompt") or "",
        reasons=(*(record.get("reasons") or ()), *((error,) if error else ())),
        scores=record.get("quality") or {},
        facts={name: _as_text(value) for name, value in facts.items() if value is not None},
        rgb=image_bytes(record.get("rgb")),
        depth=image_bytes(record.get("depth")),
        has_holes=float(parameters.get("valid_fraction", 1.0)) < 1.0,
        camera=[] if None in camera else [float(str(value)) for value in camera],
        pointcloud=record.get("pointcloud") or "",
        traceback=record.get("traceback") or "",
    )


def _parameters(text: str | None) -> dict[str, Any]:
    return {name: value for name, value in json.loads(text or "{}").items() if not isinstance(value, (dict, list))}


def _as_text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
