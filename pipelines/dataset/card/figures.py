"""The card's figures, in a folder of their version: histograms as SVG, the sample sheet as JPEG, points as PLY.

figures/000001/depth.svg    disparity, and depth in metres
figures/000001/scores.svg   each score
figures/000001/samples.jpg  images above their depth, near bright
figures/000001/points.ply   the same samples' points side by side, thinned
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from jointdit.geometry.points import PointCloud, cloud_of
from pipelines.dataset.card.summary import summary
from pipelines.dataset.card.tables import Seen, SeenRow, spec_of
from pipelines.ledger.versions import Version
from pipelines.stages.sinks.ply import ply_bytes

PANEL_WIDTH, PANEL_HEIGHT, PANELS_A_ROW = 260, 150, 3  # pixels
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#333}.title{font-weight:600}"
    ".bar{fill:#3b6fb6}.axis{stroke:#888;stroke-width:1}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.bar{fill:#7aa7e0}}"
)
CELL, CELLS_A_ROW, GAP = 128, 6, 4  # pixels of an image on the sheet
CLOUDS_A_ROW, POINTS_A_CLOUD = 4, 4000
# Matplotlib's plasma from far to near: rising in lightness, so that it reads in grey and for the colour-blind.
STOPS = ("0d0887", "4c02a1", "7e03a8", "a92395", "cc4778", "e56b5d", "f89540", "fdc527", "f0f921")


@dataclass(frozen=True)
class Panel:
    """One histogram."""

    title: str
    note: str
    edges: Sequence[float]
    counts: Sequence[int]


def draw(version: Version, seen: Seen) -> dict[str, bytes]:
    """Path -> content of each figure that this version has something for."""
    folder, figures = f"figures/{version.number:06d}", dict[str, bytes]()
    if seen.depth_images:
        images = f"{seen.depth_images} images"
        panels = [panel("relative disparity, 1 nearest", images, seen.disparity)]
        panels.append(panel("depth in metres", images, seen.metres))
        figures[f"{folder}/depth.svg"] = histograms(panels)
    if scores := {name: values for name, values in seen.scores.items() if len(values)}:
        panels = [panel(name, f"{len(values):,} samples", values) for name, values in scores.items()]
        figures[f"{folder}/scores.svg"] = histograms(panels)
    if seen.rows:
        figures[f"{folder}/samples.jpg"] = sample_sheet(seen.rows)
        if spec_of(version).output.points.format != "none":
            figures[f"{folder}/points.ply"] = merged_points(seen.rows, spec_of(version).output.points.edge_threshold)
    return figures


def panel(title: str, note: str, values: Sequence[float] | NDArray[np.float32]) -> Panel:
    """The histogram of some finite values."""
    found: Mapping[str, Sequence[float]] = summary(values)["histogram"]
    return Panel(title, note, found["edges"], [int(count) for count in found["counts"]])


def histograms(panels: Sequence[Panel]) -> bytes:
    """Panels in a grid as one SVG file, readable on light and dark pages. Titles and notes may be any text."""
    columns = min(PANELS_A_ROW, len(panels))
    width, height = columns * PANEL_WIDTH, math.ceil(len(panels) / columns) * PANEL_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img"><style>{STYLE}</style>'
    ]
    for number, each in enumerate(panels):
        left, top = number % columns * PANEL_WIDTH, number // columns * PANEL_HEIGHT
        parts.append(f'<g transform="translate({left},{top})">{_bars(each)}</g>')
    return "".join([*parts, "</svg>\n"]).encode("utf-8", "replace")


def sample_sheet(rows: Sequence[SeenRow]) -> bytes:
    """Images above their depth in a grid, numbered from 1, as JPEG."""
    columns = min(CELLS_A_ROW, len(rows))
    across, down = CELL + GAP, 2 * CELL + 5 * GAP
    size = (columns * across + GAP, math.ceil(len(rows) / columns) * down + GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, row in enumerate(rows):
        left, top = number % columns * across + GAP, number // columns * down + GAP
        for offset, array in ((0, row.rgb), (CELL + GAP, colour_depth(row.disparity))):
            if array is None:
                pen.text((left + CELL // 2, top + CELL // 2), "not copied", "gray", font, anchor="mm")
                continue
            image = ImageOps.contain(Image.fromarray(array), (CELL, CELL))
            place = left + (CELL - image.width) // 2, top + offset + (CELL - image.height) // 2
            sheet.paste(image, place)
        pen.text((left + 3, top + 2), str(number + 1), "white", font, stroke_width=2, stroke_fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def colour_depth(disparity: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Disparity (H, W) in [0, 1] as colours (H, W, 3), near bright."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in STOPS], dtype=np.float64)
    at = np.clip(np.nan_to_num(disparity), 0, 1) * (len(stops) - 1)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def merged_points(rows: Sequence[SeenRow], edge_threshold: float) -> bytes:
    """The rows' points as one PLY file: clouds beside each other in a grid, centred, the nearest point at z = 0."""
    clouds = [_thin(_cloud(row, edge_threshold)) for row in rows]
    clouds = [cloud for cloud in clouds if len(cloud)]
    spans = [np.ptp(cloud.points, axis=0) for cloud in clouds]
    cell = 1.15 * np.max(spans, axis=0) if spans else np.ones(3)
    placed = []
    for number, cloud in enumerate(clouds):
        low, high = cloud.points.min(axis=0), cloud.points.max(axis=0)
        origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        place = np.array([number % CLOUDS_A_ROW, number // CLOUDS_A_ROW, 0]) * cell
        placed.append((cloud.points - origin + place).astype(np.float32))
    points = np.concatenate(placed or [np.empty((0, 3), np.float32)])
    colours = np.concatenate([cloud.colours for cloud in clouds] or [np.empty((0, 3), np.uint8)])
    comments = [
        f"{len(clouds)} samples side by side, thinned for a look: each sample's own points are in metres, moved",
        "coordinates x right, y down, z forward",
    ]
    return ply_bytes(PointCloud(points, colours), comments)


def _cloud(row: SeenRow, edge_threshold: float) -> PointCloud:
    rgb = row.rgb if row.rgb is not None and row.rgb.shape[:2] == row.disparity.shape else colour_depth(row.disparity)
    return cloud_of(row.metres, rgb, row.intrinsics, edge_threshold)


def _thin(cloud: PointCloud) -> PointCloud:
    return cloud.at(np.arange(0, len(cloud), max(1, math.ceil(len(cloud) / POINTS_A_CLOUD))))


def _bars(each: Panel) -> str:
    left, bottom, top = 12, PANEL_HEIGHT - 28, 40
    wide = (PANEL_WIDTH - 2 * left) / len(each.counts)
    tallest = max(each.counts)
    bars = [
        f'<rect class="bar" x="{left + number * wide:.1f}" y="{bottom - (bottom - top) * count / tallest:.1f}" '
        f'width="{max(wide - 1, 1):.1f}" height="{(bottom - top) * count / tallest:.1f}"/>'
        for number, count in enumerate(each.counts)
        if count
    ]
    right = PANEL_WIDTH - left
    return "".join(
        [
            f'<text class="title" x="{left}" y="16">{html.escape(each.title)}</text>',
            f'<text x="{left}" y="31">{html.escape(each.note)}</text>',
            *bars,
            f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>',
            f'<text x="{left}" y="{bottom + 15}">{each.edges[0]:.4g}</text>',
            f'<text x="{right}" y="{bottom + 15}" text-anchor="end">{each.edges[-1]:.4g}</text>',
        ]
    )
