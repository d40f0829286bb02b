"""Sheets of samples that a filter rejects: a clean one, and one of each fault."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jobs.tools.filtering.faults import Fault, Pair, pair_of
from jobs.tools.scoring.model_faults import planted
from jointdit.scenes import Scene
from pipelines.dataset.card.figures import colour_depth
from pipelines.quality import Filter, decide

CELL, GAP, LINE = 112, 8, 12  # pixels: side of an image, gap between columns, height of a line of text
LETTERS = 20  # of a line of text
CANDIDATES = 16  # scenes; the first that the filter rejects is shown

Rgb = NDArray[np.uint8]
Inspect = Callable[[Sequence[Pair]], list[tuple[dict[str, float], tuple[Rgb, ...]]]]
"""Pairs -> for each pair its scores, and the images (H, W, 3) that explain them."""


@dataclass(frozen=True)
class Example:
    """One column of a sheet."""

    title: str
    images: tuple[Rgb, ...]
    text: str


def examples(
    rule: Filter, inspect: Inspect, faults: Sequence[Fault], scenes: Sequence[Scene], with_caption: bool = False
) -> list[Example]:
    """Return the first clean sample that a filter keeps, and the first of each fault that it rejects.

    A fault is left out if the filter rejects it in none of the first CANDIDATES scenes.
    """
    scenes = scenes[:CANDIDATES]
    shown = []
    for name, pairs in [("clean", [pair_of(scene) for scene in scenes]), *planted(faults, scenes)]:
        for pair, (scores, images) in zip(pairs, inspect(pairs), strict=True):
            reasons = decide([rule], scores, pair.caption)
            if bool(reasons) == (name != "clean"):
                text = reasons[0].removeprefix(f"{rule.kind}: ") if reasons else f"{rule.kind} keeps it"
                shown.append(Example(name, images, f"{text}. Caption: {pair.caption}" if with_caption else text))
                break
    return shown


def save_examples(path: Path, rows: Sequence[Sequence[Example]]) -> Path:
    """Save rows of columns as a PNG; return its path."""
    columns = [example for row in rows for example in row]
    lines = max(len(textwrap.wrap(example.text, LETTERS)) for example in columns)
    heads = max(len(textwrap.wrap(example.title, LETTERS)) for example in columns) * LINE + GAP
    height = heads + max(len(example.images) for example in columns) * CELL + (lines + 1) * LINE
    width = max(map(len, rows)) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, len(rows) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, row in enumerate(rows):
        for column, example in enumerate(row):
            left, top = GAP + column * (CELL + GAP), number * height
            for line in textwrap.wrap(example.title, LETTERS):
                pen.text((left, top + 2), line, "black", ImageFont.load_default(11))
                top += LINE
            top = number * height + heads
            for image in example.images:
                shown = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST)
                sheet.paste(shown, (left, top))
                top += CELL
            for line in textwrap.wrap(example.text, LETTERS):
                pen.text((left, top + 2), line, "black", font)
                top += LINE
    sheet.save(path, optimize=True)
    return path


def depth_images(*maps: NDArray[np.float32]) -> tuple[Rgb, ...]:
    """Colour disparity maps (H, W) of any range, each from its nearest to its farthest pixel."""
    return tuple(colour_depth(_stretched(np.nan_to_num(disparity))) for disparity in maps)


def _stretched(disparity: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(disparity.min()), float(disparity.max())
    return ((disparity - low) / (high - low or 1)).astype(np.float32)
