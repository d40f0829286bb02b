"""Rows -> the data files of a gallery. They are scripts, because a page on a disk may load nothing else.

    <folder>/index-000.js    gallery.index(0, {id: [...], outcome: [...], prompt: [...], reasons: [...], scores: {...}})
    <folder>/rows-00000.js   gallery.rows(0, [{rgb: ..., depth: ..., facts: ..., ...}, ...])

All values are JSON in ASCII; the page shows them as text. Long texts are cut: the tables have them whole.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipelines.dataset.gallery.images import depth_grid, thumbnail
from pipelines.dataset.gallery.rows import GalleryRow
from pipelines.ledger.entries import OUTCOMES, Outcome
from pipelines.store.storage import Storage

INDEX_ROWS = 1000
BLOCK_ROWS = 10  # a screen of a sorted gallery may need one block a row, so they are small
THREADS = min(8, os.cpu_count() or 1)  # codecs release the interpreter's lock
PROMPT_LENGTH, REASON_LENGTH, TRACEBACK_LENGTH = 4000, 1000, 10_000  # characters


@dataclass
class Written:
    """What was written."""

    shown: Counter[Outcome] = field(default_factory=Counter)
    indexes: int = 0
    blocks: int = 0
    aspects: Counter[float] = field(default_factory=Counter)

    @property
    def aspect(self) -> float:
        """Width / height of most images, and 1 where there is none."""
        return self.aspects.most_common(1)[0][0] if self.aspects else 1.0


def write_blocks(storage: Storage, folder: str, rows: Iterable[GalleryRow]) -> Written:
    """Write rows, in order, into a folder; a few blocks at a time, so memory does not grow with the rows."""
    written = Written()
    block: list[GalleryRow] = []
    index: list[dict[str, Any]] = []
    pending: list[Future[None]] = []
    with ThreadPoolExecutor(THREADS) as pool:

        def end_block() -> None:
            name = f"{folder}/rows-{written.blocks:05d}.js"
            pending.append(pool.submit(_write_rows, storage, name, written.blocks, block[:]))
            written.blocks += 1
            block.clear()
            if len(pending) > 2 * THREADS:
                pending.pop(0).result()

        def end_index() -> None:
            data = _call("index", written.indexes, _columns(index))
            storage.write_bytes(f"{folder}/index-{written.indexes:03d}.js", data)
            written.indexes += 1
            index.clear()

        for row in rows:
            written.shown[row.outcome] += 1
            if row.camera:
                written.aspects[round(row.camera[4] / row.camera[5], 3)] += 1
            index.append(_searched(row))
            block.append(row)
            if len(block) == BLOCK_ROWS:
                end_block()
            if len(index) == INDEX_ROWS:
                end_index()
        if block:
            end_block()
        if index:
            end_index()
        for future in pending:
            future.result()
    return written


def _searched(row: GalleryRow) -> dict[str, Any]:
    """What is searched, filtered and sorted by."""
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


def _write_rows(storage: Storage, name: str, number: int, rows: Sequence[GalleryRow]) -> None:
    storage.write_bytes(name, _call("rows", number, [_shown(row) for row in rows]))


def _shown(row: GalleryRow) -> dict[str, Any]:
    """What is seen, without what a row does not have."""
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
    """Six digits; JSON has neither NaN nor infinity."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
