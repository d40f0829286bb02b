"""The gallery: one HTML page that shows what came out, kept, rejected and quarantined, and needs nothing but itself.

    write(storage, job, version, limit=240)   reads some rows of the version's tables, writes gallery/index.html
    is_about(storage, version) -> bool        whether that page is there and shows this version
    read_rows(storage, version, limit)        those rows, spread over the files
    render(version, rows) -> bytes            the page; gallery.html beside this file is its template

Pictures are in the page as small WebP files. Everything from the input is escaped, and the page's security policy
allows only the template's own script (by its hash) and no network, so text from a prompt stays text even if the
escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from jointdit.depth import decode_depth_png
from jointdit.errors import RowError
from pipelines.card import spec_of
from pipelines.ledger import OUTCOMES, Job, Outcome
from pipelines.publish import Version
from pipelines.readers.pictures import decode_picture
from pipelines.storage import Storage

THUMBNAIL = 256  # pixels, the longer side
COLUMNS = ["id", "prompt", "rgb", "depth", "width", "height", "seed", "round", "pointcloud", "quality"]
# Matplotlib's plasma from far to near: rising in lightness, so that it reads in grey and for the colour-blind.
COLOURS = ("0d0887", "4c02a1", "7e03a8", "a92395", "cc4778", "e56b5d", "f89540", "fdc527", "f0f921")


@dataclass(frozen=True)
class GalleryRow:
    """One card of the page. What an outcome does not have is empty."""

    id: str
    outcome: Outcome
    prompt: str | None = None
    rgb: NDArray[np.uint8] | None = None  # (H, W, 3)
    disparity: NDArray[np.float32] | None = None  # (H, W) in [0, 1], 1 nearest
    facts: Mapping[str, str] = field(default_factory=dict)  # shown as they are: size, seed, round
    scores: Mapping[str, float | None] = field(default_factory=dict)
    reasons: Sequence[str] = ()  # why it was rejected
    pointcloud: str | None = None  # path relative to the dataset
    error: str = ""  # why it was quarantined
    traceback: str = ""


def write(storage: Storage, job: Job, version: Version, limit: int = 240) -> None:
    """Write gallery/index.html of a version with at most `limit` rows an outcome."""
    storage.write_bytes("gallery/index.html", render(version, list(read_rows(storage, version, limit))))


def is_about(storage: Storage, version: Version) -> bool:
    """Whether gallery/index.html is that of this version."""
    try:
        page = storage.read_bytes("gallery/index.html")
    except FileNotFoundError:
        return False
    return f"<dd>{_stamp(version)}</dd>".encode() in page


def read_rows(storage: Storage, version: Version, limit: int) -> Iterator[GalleryRow]:
    """At most `limit` rows of each outcome, the same number from each file as far as that goes."""
    for outcome in OUTCOMES:
        paths = version.files_of(outcome)
        chosen = paths[:: max(1, math.ceil(len(paths) / max(1, limit)))]
        left = limit
        for number, path in enumerate(chosen):
            share = math.ceil(left / (len(chosen) - number))
            with storage.open(path) as file:
                for row in _first_rows(file, outcome, share):
                    left -= 1
                    yield row


def render(version: Version, rows: Sequence[GalleryRow]) -> bytes:
    """The page: cards of the rows in order, a tab for each outcome, counts of the whole version."""
    template = files("pipelines").joinpath("gallery.html").read_text(encoding="utf-8")
    spec = spec_of(version)
    facts = {
        "task": spec.task,
        "version": _stamp(version),
        "model": spec.model.name or f"{spec.model.base} + {spec.model.adapter}",
        "sampling": f"{spec.model.steps} steps · guidance {spec.model.guidance:g}",
        "seed": str(spec.seed),
    }
    shown = {outcome: sum(row.outcome == outcome for row in rows) for outcome in OUTCOMES}
    page = string.Template(template).substitute(
        title=html.escape(spec.name),
        facts="".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items()),
        tabs="".join(_tab(outcome, version.counts.get(outcome, 0)) for outcome in OUTCOMES),
        panels="".join(
            _panel(outcome, [row for row in rows if row.outcome == outcome], version.counts.get(outcome, 0))
            for outcome in OUTCOMES
        ),
        gradient=", ".join(f"#{colour}" for colour in COLOURS),
        script_hash=_hash(template, "script"),
        shown=sum(shown.values()),
    )
    return page.encode("utf-8", "replace")


def _stamp(version: Version) -> str:
    return f"{version.number} · {version.created}"


def colour_depth(disparity: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Disparity (H, W) in [0, 1] as colours (H, W, 3), near bright."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in COLOURS], dtype=np.float64)
    at = np.clip(np.nan_to_num(disparity), 0, 1) * (len(stops) - 1)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _first_rows(file: Any, outcome: Outcome, count: int) -> Iterator[GalleryRow]:
    wanted = {"kept": COLUMNS, "rejected": [*COLUMNS, "reasons"], "quarantined": ["id", "input", "error", "traceback"]}
    for batch in pq.ParquetFile(file).iter_batches(16, columns=wanted[outcome], use_threads=False):
        for record in batch.slice(0, count).to_pylist():
            count -= 1
            yield _row(record, outcome)
        if count <= 0:
            return


def _row(record: Mapping[str, Any], outcome: Outcome) -> GalleryRow:
    if outcome == "quarantined":
        return GalleryRow(
            record["id"],
            outcome,
            facts={"input": record["input"]},
            error=record["error"],
            traceback=record["traceback"] or "",
        )
    facts = {"size": f"{record['width']} × {record['height']}", "seed": str(record["seed"])}
    if record["round"]:
        facts["round"] = str(record["round"])
    return GalleryRow(
        id=record["id"],
        outcome=outcome,
        prompt=record["prompt"],
        rgb=_decoded(record["rgb"]),
        disparity=decode_depth_png(record["depth"]["bytes"]),
        facts=facts,
        scores=record["quality"] or {},
        reasons=record.get("reasons") or (),
        pointcloud=record["pointcloud"],
    )


def _decoded(image: Mapping[str, Any] | None) -> NDArray[np.uint8] | None:
    """The picture of an Image struct; None where only its address is kept."""
    if image is None or image["bytes"] is None:
        return None
    try:
        return decode_picture(image["bytes"])[0]
    except RowError:  # validate tells about damage; the page shows the rest
        return None


def _tab(outcome: Outcome, count: int) -> str:
    return (
        f'<button role="tab" id="tab-{outcome}" aria-controls="panel-{outcome}" data-outcome="{outcome}">'
        f"{outcome} <b>{count:,}</b></button>"
    )


def _panel(outcome: Outcome, rows: Sequence[GalleryRow], count: int) -> str:
    cards = "".join(_card(row) for row in rows)
    note = f"Showing {len(rows):,} of {count:,}." if len(rows) < count else ""
    empty = "" if rows else f'<p class="empty">No sample was {outcome}.</p>'
    return (
        f'<section role="tabpanel" id="panel-{outcome}" aria-labelledby="tab-{outcome}" data-outcome="{outcome}">'
        f'{empty}<div class="grid">{cards}</div><p class="note">{note}</p></section>'
    )


def _card(row: GalleryRow) -> str:
    """A card. Every text that comes from outside goes through html.escape here."""
    parts = [f'<article class="card {row.outcome}">']
    if row.disparity is not None:
        rgb = _figure(row.rgb, "rgb", "picture") if row.rgb is not None else '<div class="none">not copied</div>'
        parts.append(f'<div class="pair">{rgb}{_figure(colour_depth(row.disparity), "depth", "depth")}</div>')
    parts.append('<div class="text">')
    parts.extend(f'<p class="reason">{html.escape(reason)}</p>' for reason in row.reasons)
    if row.error:
        parts.append(f'<p class="reason">{html.escape(row.error)}</p>')
    if row.prompt:
        parts.append(f'<p class="prompt">{html.escape(row.prompt)}</p>')
    parts.append(f'<p class="id">{html.escape(row.id)}</p>')
    parts.append('<ul class="chips">')
    parts.extend(f"<li>{html.escape(name)} <b>{html.escape(value)}</b></li>" for name, value in row.facts.items())
    parts.append("</ul>")
    scores = {name: value for name, value in row.scores.items() if value is not None}
    if scores:
        parts.append("<details><summary>scores</summary><dl>")
        parts.extend(f"<dt>{html.escape(name)}</dt><dd>{value:.4g}</dd>" for name, value in scores.items())
        parts.append("</dl></details>")
    if row.pointcloud:
        parts.append(f'<a href="../{quote(row.pointcloud)}" download>point cloud</a>')
    if row.traceback:
        parts.append(f"<details><summary>traceback</summary><pre>{html.escape(row.traceback)}</pre></details>")
    parts.append("</div></article>")
    return "".join(parts)


def _figure(rgb: NDArray[np.uint8], kind: str, alt: str) -> str:
    image = Image.fromarray(rgb)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img class="{kind}" alt="{alt}" loading="lazy" width="{image.width}" height="{image.height}" '
        f'src="data:image/webp;base64,{data}">'
    )


def _hash(template: str, tag: str) -> str:
    """The source expression that allows the template's one script in the page's security policy."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    assert found is not None, f"gallery.html has no <{tag}>"
    digest = hashlib.sha256(found.group(1).encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
