"""The figures of the card: a sheet of samples as JPEG, and their points as PLY.

They are stored in a folder of their version:

figures/000001/samples.jpg  images above their depth, near bright
figures/000001/points.ply   the points of the same samples side by side, downsampled
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from jointdit.geometry.points import PointCloud, cloud_of
from pipelines.dataset.card.tables import SampledTables, SampleRow
from pipelines.ledger.versions import Version
from pipelines.stages.sinks.ply import ply_bytes

CELL, CELLS_PER_ROW, GAP = 128, 6, 4  # pixels of an image on the sheet
CLOUDS_PER_ROW, POINTS_PER_CLOUD = 4, 4000
# Matplotlib's plasma from far to near. Its lightness rises, so it works in grey and for colour-blind readers.
STOPS = ("0d0887", "4c02a1", "7e03a8", "a92395", "cc4778", "e56b5d", "f89540", "fdc527", "f0f921")


def draw(version: Version, sampled: SampledTables) -> dict[str, bytes]:
    """Return path -> content of the figures that this version has data for."""
    folder, figures = f"figures/{version.number:06d}", dict[str, bytes]()
    points = version.spec.output.points
    if sampled.rows:
        figures[f"{folder}/samples.jpg"] = sample_sheet(sampled.rows)
        if points.format != "none":
            figures[f"{folder}/points.ply"] = merged_points(sampled.rows, points.edge_threshold)
    return figures


def sample_sheet(rows: Sequence[SampleRow]) -> bytes:
    """Draw images above their depth in a grid, numbered from 1. Returns a JPEG."""
    columns = min(CELLS_PER_ROW, len(rows))
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
    """Colour disparity (H, W) in [0, 1] as RGB (H, W, 3), near bright."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in STOPS], dtype=np.float64)
    at = np.clip(np.nan_to_num(disparity), 0, 1) * (len(stops) - 1)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def merged_points(rows: Sequence[SampleRow], edge_threshold: float) -> bytes:
    """Return the points of rows as one PLY file: clouds in a grid, centred, each with its nearest point at z = 0."""
    clouds = [_thin(_cloud(row, edge_threshold)) for row in rows]
    clouds = [cloud for cloud in clouds if len(cloud)]
    spans = [np.ptp(cloud.points, axis=0) for cloud in clouds]
    cell = 1.15 * np.max(spans, axis=0) if spans else np.ones(3)
    placed = []
    for number, cloud in enumerate(clouds):
        low, high = cloud.points.min(axis=0), cloud.points.max(axis=0)
        origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        place = np.array([number % CLOUDS_PER_ROW, number // CLOUDS_PER_ROW, 0]) * cell
        placed.append((cloud.points - origin + place).astype(np.float32))
    points = np.concatenate(placed or [np.empty((0, 3), np.float32)])
    colours = np.concatenate([cloud.colours for cloud in clouds] or [np.empty((0, 3), np.uint8)])
    comments = [
        f"{len(clouds)} samples side by side, downsampled for a preview: each sample's own points are in metres, moved",
        "coordinates x right, y down, z forward",
    ]
    return ply_bytes(PointCloud(points, colours), comments)


def _cloud(row: SampleRow, edge_threshold: float) -> PointCloud:
    rgb = row.rgb if row.rgb is not None and row.rgb.shape[:2] == row.disparity.shape else colour_depth(row.disparity)
    return cloud_of(row.metres, rgb, row.intrinsics, edge_threshold)


def _thin(cloud: PointCloud) -> PointCloud:
    return cloud.at(np.arange(0, len(cloud), max(1, math.ceil(len(cloud) / POINTS_PER_CLOUD))))
