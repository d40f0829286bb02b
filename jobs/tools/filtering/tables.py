"""The tables and the image of pipelines/quality/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jobs.tools.filtering.faults import FAULTS, HANDS, Fault, Pair
from jobs.tools.filtering.recall import THRESHOLDS, Samples, measured, rejected_share, spoilt, tested
from jointdit.errors import InputError
from jointdit.scenes import render_scene
from pipelines.dataset.card.figures import colour_depth
from pipelines.quality import PIXEL_FILTERS

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLUMNS = 6
CELL = 112  # pixels of one image in the sheet
LABEL = 16  # pixels of its line of text
LARGEST_SHEET = 400_000  # bytes


def recall_table(samples: Samples, extra: Sequence[Sequence[str]] = ()) -> str:
    """Which faults are found; `extra` rows are appended."""
    rows = [
        [
            fault.name,
            fault.what,
            fault.kind,
            _percent(rejected_share(tested(samples[fault.name]), [fault.kind])),
            _percent(rejected_share(tested(samples[fault.name]))),
        ]
        for fault in FAULTS
    ]
    return _table(["planted fault", "drawn from", "its filter", "recall", "recall of all filters"], [*rows, *extra])


def alarm_table(samples: Samples, made: Samples | None = None) -> str:
    """Which clean samples are rejected, and which of those that a checkpoint made, by its name."""
    columns = {name: tested(samples[name]) for name in HANDS} | dict(made or {})
    rows = [[kind, *(_percent(rejected_share(each, [kind])) for each in columns.values())] for kind in PIXEL_FILTERS]
    rows.append(["all together", *(_percent(rejected_share(each)) for each in columns.values())])
    return _table(["rejected of clean samples", *columns], rows)


def threshold_table(samples: Samples) -> str:
    """Where the scores of clean and spoilt samples lie on the calibration half, and the default between them."""
    rows = []
    for threshold in THRESHOLDS:
        clean, fault = threshold.between(samples)
        figures = (f"{value:.4g}" for value in (clean, fault, threshold.default))
        rows.append([f"{threshold.kind}.{threshold.field}", threshold.score, threshold.fault, *figures])
    heads = ["threshold", "on the score", "for", "clean, all but 0.5 %", "spoilt, all but 5 %", "default"]
    return _table(heads, rows)


def save_sheet(path: Path, seed: int, size: int) -> Path:
    """One sample of each fault, image above depth; scenes differ, the first is clean. Returns the path."""
    cells = [_cell("clean", _pair(seed, size, "as rendered"))]
    shown = [fault for fault in FAULTS if fault.kind != "caption"]
    cells += [_cell(fault.name, _rejected(fault, seed + number, size)) for number, fault in enumerate(shown, 1)]
    blank = Image.new("RGB", cells[0].size, "white")
    cells += [blank] * (-len(cells) % COLUMNS)
    width, height = cells[0].size
    sheet = Image.new("RGB", (COLUMNS * width, len(cells) // COLUMNS * height), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % COLUMNS * width, number // COLUMNS * height))
    sheet.save(path, optimize=True)
    assert path.stat().st_size < LARGEST_SHEET, f"{path} has {path.stat().st_size} bytes"
    return path


def write_between_markers(path: Path, text: str) -> None:
    """Put a text between the markers of a Markdown file. Raises InputError where it has none."""
    document = path.read_text()
    begin, end = document.find(BEGIN), document.find(END)
    if not 0 <= begin < end:
        raise InputError(f"{path} has no lines {BEGIN} and {END}: put them where the tables belong.")
    path.write_text(f"{document[: begin + len(BEGIN)]}\n\n{text.strip()}\n\n{document[end:]}")


def _pair(seed: int, size: int, name: str) -> Pair:
    scene, other = render_scene(seed, size, size), render_scene(seed + 1, size, size)
    return dict(spoilt(scene, other))[name]


def _rejected(fault: Fault, seed: int, size: int) -> Pair:
    """The first of some scenes where the fault is found, or the last of them."""
    for number in range(5):
        pair = _pair(seed + 100 * number, size, fault.name)
        if rejected_share([measured(pair)], [fault.kind]):
            break
    return pair


def _cell(name: str, pair: Pair) -> Image.Image:
    cell = Image.new("RGB", (CELL + 8, 2 * CELL + LABEL + 8), "white")
    ImageDraw.Draw(cell).text((4, 2), name, fill="black", font=ImageFont.load_default(11))
    depth = colour_depth(np.nan_to_num(pair.disparity, posinf=0, neginf=0))
    for number, image in enumerate((pair.rgb, depth)):
        shown = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST)
        cell.paste(shown, (4, LABEL + number * CELL))
    return cell


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows)) + "\n"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
