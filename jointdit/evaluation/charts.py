"""Line charts as images, drawn with Pillow: enough for curves over steps or frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from jointdit.errors import InputError

WIDTH, HEIGHT = 460, 340  # pixels of one chart
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 40  # margins
FONT_SIZE = 12
AXIS, GRID, INK = (90, 90, 90), (225, 225, 225), (20, 20, 20)


@dataclass(frozen=True)
class Line:
    """One curve: x and y of equal length, a colour in 0..255, a name for the legend or ""."""

    x: ArrayLike
    y: ArrayLike
    colour: tuple[int, int, int]
    name: str = ""


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], log_y: bool = False) -> Image.Image:
    """A chart of curves. Points that are not finite, or not above 0 on a logarithmic axis, are left out.

    Raises InputError where no point is left.
    """
    curves = [_points(line, log_y) for line in lines]
    points = np.concatenate(curves) if curves else np.empty((0, 2))
    if not len(points):
        raise InputError(f"chart {title!r} has no point that can be drawn.")
    low, high = points.min(axis=0), points.max(axis=0)
    high = np.where(high > low, high, low + 1)

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT_SIZE)
    size = np.array([WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM])

    def at(point: NDArray[np.float64]) -> tuple[float, float]:
        x, y = (point - low) / (high - low) * size
        return LEFT + float(x), HEIGHT - BOTTOM - float(y)

    for tick in _ticks(low[1], high[1], whole=log_y):
        y = at(np.array([low[0], tick]))[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], GRID)
        draw.text((LEFT - 6, y), f"{10**tick:.0e}" if log_y else f"{tick:g}", INK, font, anchor="rm")
    for tick in _ticks(low[0], high[0]):
        x = at(np.array([tick, low[1]]))[0]
        draw.line([(x, TOP), (x, HEIGHT - BOTTOM)], GRID)
        draw.text((x, HEIGHT - BOTTOM + 5), f"{tick:g}", INK, font, anchor="mt")
    draw.rectangle([LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM], outline=AXIS)
    draw.text((LEFT, TOP - 8), f"{title} ({y_label})", INK, font, anchor="ls")
    draw.text((WIDTH - RIGHT, HEIGHT - 6), x_label, INK, font, anchor="rs")
    for line, curve in zip(lines, curves, strict=True):
        if len(curve):
            draw.line([at(point) for point in curve], line.colour, width=2)
    for row, line in enumerate(line for line in lines if line.name):
        y = TOP + 12 + 16 * row
        draw.line([(WIDTH - RIGHT - 130, y), (WIDTH - RIGHT - 110, y)], line.colour, width=3)
        draw.text((WIDTH - RIGHT - 104, y), line.name, INK, font, anchor="lm")
    return image


def side_by_side(charts: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Charts of one size in a grid."""
    rows = math.ceil(len(charts) / columns)
    sheet = Image.new("RGB", (WIDTH * min(columns, len(charts)), HEIGHT * rows), "white")
    for index, chart in enumerate(charts):
        sheet.paste(chart, (WIDTH * (index % columns), HEIGHT * (index // columns)))
    return sheet


def _points(line: Line, log_y: bool) -> NDArray[np.float64]:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log10(y) if log_y else y
    points = np.stack([x, y], axis=1)
    return points[np.isfinite(points).all(axis=1)]


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round values between two ends, four to ten of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    if whole:
        step = max(1.0, round(step))
    return [float(round(i * step, 12)) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
