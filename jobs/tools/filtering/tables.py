"""The tables and the image of rejected samples in pipelines/quality/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.tools.filtering.faults import FAULTS, STYLES, Fault, Pair
from jobs.tools.filtering.recall import THRESHOLDS, Samples, measured, rejected_share, tested, variants
from jobs.tools.scoring.sheet import Example, save_examples
from jointdit.scenes import render_scene
from pipelines.dataset.card.figures import colour_depth
from pipelines.quality import PIXEL_FILTERS

README = Path(__file__).parents[3] / "pipelines" / "quality" / "README.md"
COLUMNS = 6


def recall_table(samples: Samples, extra: Sequence[Sequence[str]] = ()) -> str:
    """Return the table of recall by fault, with `extra` rows at the end."""
    rows = [
        [
            fault.name,
            fault.what,
            fault.kind,
            percent(rejected_share(tested(samples[fault.name]), [fault.kind])),
            percent(rejected_share(tested(samples[fault.name]))),
        ]
        for fault in FAULTS
    ]
    return _table(["planted fault", "drawn from", "its filter", "recall", "recall of all filters"], [*rows, *extra])


def alarm_table(samples: Samples, generated: Samples | None = None) -> str:
    """Return the table of rejected shares of clean samples, and of those that a checkpoint generated."""
    columns = {name: tested(samples[name]) for name in STYLES} | dict(generated or {})
    rows = [[kind, *(percent(rejected_share(column, [kind])) for column in columns.values())] for kind in PIXEL_FILTERS]
    rows.append(["all together", *(percent(rejected_share(column)) for column in columns.values())])
    return _table(["rejected of clean samples", *columns], rows)


def threshold_table(samples: Samples) -> str:
    """Return the table of thresholds: scores of clean and faulty samples on the calibration half, and the default."""
    rows = []
    for threshold in THRESHOLDS:
        clean, fault = threshold.between(samples)
        figures = (f"{value:.4g}" for value in (clean, fault, threshold.default))
        rows.append([f"{threshold.kind}.{threshold.field}", threshold.score, threshold.fault, *figures])
    heads = ["threshold", "on the score", "for", "clean, all but 0.5 %", "faulty, all but 5 %", "default"]
    return _table(heads, rows)


def save_sheet(path: Path, seed: int, size: int) -> Path:
    """Save a clean sample and one of each fault, image above depth, as a PNG; return its path."""
    shown = [fault for fault in FAULTS if fault.kind != "caption"]
    columns = [_column("clean", _pair(seed, size, "as rendered"))]
    columns += [_column(fault.name, _rejected(fault, seed + number, size)) for number, fault in enumerate(shown, 1)]
    return save_examples(path, [columns[start : start + COLUMNS] for start in range(0, len(columns), COLUMNS)])


def write_section(path: Path, name: str, text: str) -> None:
    """Write a text between the markers <!-- name: begin --> and <!-- name: end --> of a Markdown file.

    Markers that are missing are added at the end of the file.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    document = path.read_text() if path.exists() else ""
    if begin not in document:
        document = f"{document.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    before, rest = document.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def _pair(seed: int, size: int, name: str) -> Pair:
    scene, other = render_scene(seed, size, size), render_scene(seed + 1, size, size)
    return dict(variants(scene, other))[name]


def _rejected(fault: Fault, seed: int, size: int) -> Pair:
    """Return the first of five faulty pairs that the filter rejects, or the last one."""
    for number in range(5):
        pair = _pair(seed + 100 * number, size, fault.name)
        if rejected_share([measured(pair)], [fault.kind]):
            break
    return pair


def _column(title: str, pair: Pair) -> Example:
    return Example(title, (pair.rgb, colour_depth(np.nan_to_num(pair.disparity, posinf=0, neginf=0))), "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows)) + "\n"


def percent(share: float) -> str:
    """Format a share, such as 12.3 %."""
    return f"{share:.1%}".replace("%", " %")
