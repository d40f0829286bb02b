"""Write rows as the data files of a gallery, which are scripts.

A page that is opened from a disk may load no other files.

    <folder>/index-000.js    gallery.index(0, {id: [...], outcome: [...], prompt: [...], reasons: [...], scores: {...}})
    <folder>/rows-00000.js   gallery.rows(0, [{rgb: ..., depth: ..., facts: ..., ...}, ...])

All values are JSON in ASCII, and the page shows them as text. Long texts are truncated; the tables have them in full.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipelines.dataset.gallery.images import depth_grid, thumbnail
from pipelines.dataset.gallery.rows import GalleryRow
from pipelines.ledger.entries import OUTCOMES, Outcome
from pipelines.store.storage import Storage

BLOCK_ROWS = 10  # small, because a screen of a sorted gallery may need one block per row
INDEX_ROWS = 100 * BLOCK_ROWS
THREADS = min(8, os.cpu_count() or 1)  # codecs release the interpreter lock
PROMPT_LENGTH, REASON_LENGTH, TRACEBACK_LENGTH = 4000, 1000, 10_000  # characters


@dataclass
class Written:
    """What was written, for the page's settings."""

    shown: Counter[Outcome] = field(default_factory=Counter)
    indexes: int = 0
    blocks: int = 0
    aspects: Counter[float] = field(default_factory=Counter)

    @property
    def aspect(self) -> float:
        """The most frequent width / height of the images, or 1 without images."""
        return self.aspects.most_common(1)[0][0] if self.aspects else 1.0


def write_blocks(storage: Storage, folder: str, rows: Iterable[GalleryRow]) -> Written:
    """Write rows, in order, into a folder. Only a few blocks are in memory at a time, however many rows there are."""
    written = Written()
    index: list[dict[str, Any]] = []
    pending: deque[Future[None]] = deque()
    remaining = iter(rows)
    with ThreadPoolExecutor(THREADS) as pool:
        while block := list(islice(remaining, BLOCK_ROWS)):
            name = f"{folder}/rows-{written.blocks:05d}.js"
            pending.append(pool.submit(_write_rows, storage, name, written.blocks, block))
            written.blocks += 1
            written.shown.update(row.outcome for row in block)
            written.aspects.update(round(row.camera[4] / row.camera[5], 3) for row in block if row.camera)
            index += [_searched(row) for row in block]
            if len(index) == INDEX_ROWS:
                _write_index(storage, folder, written, index)
                index = []
            if len(pending) > 2 * THREADS:
                pending.popleft().result()
        if index:
            _write_index(storage, folder, written, index)
        for future in pending:
            future.result()
    return written


def _searched(row: GalleryRow) -> dict[str, Any]:
    """Return the fields that are searched, filtered and sorted by."""
    return {
        "id": row.id,
        "outcome": OUTCOMES.index(row.outcome),
        "prompt": _cut(row.prompt, PROMPT_LENGTH),
        "reasons": [_cut(reason, REASON_LENGTH) for reason in row.reasons],
        "scores": {name: _rounded(value) for name, value in row.scores.items()},
    }


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in ("id", "outcome", "prompt", "reasons")}
    return columns | {"scores": {name: [row["scores"].get(name) for row in rows] for name in names}}


def _write_index(storage: Storage, folder: str, written: Written, index: Sequence[dict[str, Any]]) -> None:
    data = _call("index", written.indexes, _columns(index))
    storage.write_bytes(f"{folder}/index-{written.indexes:03d}.js", data)
    written.indexes += 1


def _write_rows(storage: Storage, name: str, number: int, rows: Sequence[GalleryRow]) -> None:
    storage.write_bytes(name, _call("rows", number, [_shown(row) for row in rows]))


def _shown(row: GalleryRow) -> dict[str, Any]:
    """Return the fields that are shown, without empty ones."""
    fields = {
        "rgb": thumbnail(row.rgb),
        "depth": depth_grid(row.depth, row.has_holes),
        "camera": [_rounded(value) for value in row.camera],
        "facts": {name: _cut(value, REASON_LENGTH) for name, value in row.facts.items()},
        "pointcloud": row.pointcloud,
        "traceback": _cut(row.traceback, TRACEBACK_LENGTH),
    }
    return {name: value for name, value in fields.items() if value}


def _call(function: str, number: int, value: object) -> bytes:
    return f"gallery.{function}({number},{json.dumps(value, separators=(',', ':'), allow_nan=False)})\n".encode("ascii")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _rounded(value: float | None) -> float | None:
    """Round to six digits. JSON has neither NaN nor infinity."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
