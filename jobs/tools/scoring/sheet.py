"""Images of what filters reject that look through a model: beside a clean sample, one of each planted fault."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jobs.tools.filtering.faults import Fault, Pair, pair_of
from jobs.tools.scoring.spoilt import planted
from jointdit.scenes import Scene
from pipelines.dataset.card.figures import colour_depth
from pipelines.quality import Filter, decide

CELL, GAP, LINE = 112, 8, 12  # pixels: an image's side, between columns, a line of text
LETTERS = 20  # of a line of the text below a column
TRIED = 16  # scenes of which the first is shown that a filter rejects

Rgb = NDArray[np.uint8]
Seen = Callable[[Sequence[Pair]], list[tuple[dict[str, float], tuple[Rgb, ...]]]]
"""Pairs -> of each its scores, and the images (H, W, 3) that tell why."""


@dataclass(frozen=True)
class Example:
    """A column of a sheet."""

    title: str
    images: tuple[Rgb, ...]
    text: str


def examples(
    rule: Filter, seen: Seen, faults: Sequence[Fault], scenes: Sequence[Scene], with_caption: bool = False
) -> list[Example]:
    """The first clean sample that a filter keeps, and the first of each fault that it rejects, with its reason.

    A fault of which the filter rejects none of the first TRIED scenes is left out.
    """
    tried = scenes[:TRIED]
    shown = []
    for name, pairs in [("clean", [pair_of(scene) for scene in tried]), *planted(faults, tried)]:
        for pair, (scores, images) in zip(pairs, seen(pairs), strict=True):
            reasons = decide([rule], scores, pair.caption)
            if bool(reasons) == (name != "clean"):
                text = reasons[0].removeprefix(f"{rule.kind}: ") if reasons else f"{rule.kind} keeps it"
                shown.append(Example(name, images, f"{text}. Caption: {pair.caption}" if with_caption else text))
                break
    return shown


def save_examples(path: Path, rows: Sequence[Sequence[Example]]) -> Path:
    """Rows of columns as a PNG."""
    columns = [example for row in rows for example in row]
    lines = max(len(textwrap.wrap(example.text, LETTERS)) for example in columns)
    heads = max(len(textwrap.wrap(example.title, LETTERS)) for example in columns) * LINE + GAP
    height = heads + max(len(example.images) for example in columns) * CELL + (lines + 1) * LINE
    width = max(map(len, rows)) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, len(rows) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, row in enumerate(rows):
        for place, example in enumerate(row):
            left, top = GAP + place * (CELL + GAP), number * height
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
    """Maps (H, W) of disparity, of any range, in colours: each from its nearest to its farthest pixel."""
    return tuple(colour_depth(_stretched(np.nan_to_num(each))) for each in maps)


def _stretched(disparity: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(disparity.min()), float(disparity.max())
    return ((disparity - low) / (high - low or 1)).astype(np.float32)
