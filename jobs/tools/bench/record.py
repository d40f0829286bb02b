"""What a bench found, with machine and commit: as JSON, as text, and as BENCH.md.

jobs/tools/BENCH.json holds the last result of each bench. BENCH.md beside it is written from it, and from tried.py,
which says what was tried for a line that is not reached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.tools.bench import BENCHES
from jobs.tools.bench.frame import Line, Reach, Spread
from jobs.tools.bench.tried import tried

FOLDER = Path(__file__).parents[1]
SIGNS = {"at least": "≥", "at most": "≤"}
COLUMNS = ("bench", "what", "ours", "compared with", "ratio or figure", "reach", "reached")
HEAD = """# Benches

Written by `{command}`, not by hand. Each figure is the median of repetitions, with its quartiles; a ratio is of two
sides that took turns in one run on one machine, and its quartiles are those of the pairs. A bench that finds that its
sides did different work reports nothing. `jointdit bench --list` says what each measures, and `jobs/tools/bench/` how.
"""


@dataclass(frozen=True)
class Result:
    """One run of one bench."""

    name: str
    lines: tuple[Line, ...]
    seconds: float
    finished: str  # UTC
    commit: str
    machine: Mapping[str, Any]
    load: float  # of the machine when it began
    quick: bool = False
    error: str = ""  # why there are no figures; empty if there are

    def to_json(self) -> dict[str, Any]:
        """Ready for json.dumps."""
        fields = asdict(self)
        for line, made in zip(fields["lines"], self.lines, strict=True):
            line["reached"] = made.reached
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Result:
        """What `to_json` gave."""
        return cls(**{**fields, "lines": tuple(_line(each) for each in fields["lines"])})


def _line(fields: Mapping[str, Any]) -> Line:
    fields = {name: value for name, value in fields.items() if name != "reached"}
    spreads = {name: Spread(**fields[name]) for name in ("ours", "theirs", "figure") if fields[name]}
    reach = Reach(**fields["reach"]) if fields["reach"] else None
    return Line(**{**fields, **spreads, "reach": reach, "notes": tuple(fields["notes"])})


def read_results(folder: Path = FOLDER) -> dict[str, Result]:
    """The last result of each bench."""
    try:
        fields = json.loads((folder / "BENCH.json").read_text())
    except FileNotFoundError:
        return {}
    return {each["name"]: Result.from_json(each) for each in fields}


def write_results(new: Sequence[Result], command: str, folder: Path = FOLDER) -> Path:
    """Put new results in place of the older ones, and write the table again; returns its path."""
    results = {**read_results(folder), **{each.name: each for each in new}}
    ordered = [results[name] for name in BENCHES if name in results]
    (folder / "BENCH.json").write_text(json.dumps([each.to_json() for each in ordered], indent=1) + "\n")
    path = folder / "BENCH.md"
    path.write_text(markdown(ordered, command))
    return path


def markdown(results: Sequence[Result], command: str) -> str:
    """The document."""
    parts = [HEAD.format(command=command)]
    parts += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for result in results:
        if result.error:
            parts.append(f"| {result.name} | failed: {_cell(result.error)} | | | | | no |")
        parts += [f"| {' | '.join(map(_cell, (result.name, *cells(line))))} |" for line in result.lines]
    parts.append("\n## How each was measured\n")
    for result in results:
        bench = BENCHES[result.name]
        compared = f", compared with {bench.compared_with}" if bench.compared_with != "-" else ""
        parts.append(f"### {result.name}\n\n{bench.question}{compared}.\n")
        load = f"load {result.load:g} before it began"
        parts.append(f"{result.finished}, commit {result.commit}, {result.seconds:.0f} s, {load}.\n")
        for line in result.lines:
            parts.append(f"- {line.what}: {_work(line.work)}{_repetitions(line)}")
            parts += [f"  - {note}" for note in line.notes]
            if line.reached is False:
                parts += [f"  - not reached: {fact}" for fact in tried(result.name, line.what)]
        parts.append("")
    parts.append("## The machine\n")
    for number, each in enumerate({json.dumps(result.machine, sort_keys=True): result for result in results}.values()):
        names = ", ".join(f"{name} {found}" for name, found in each.machine["packages"].items())
        where = each.machine
        parts.append(
            f"{number + 1}. {where['cpu']}, {where['cores']} cores, {where['memory_gb']} GB, {where['system']}, "
            f"Python {where['python']}, {names}."
        )
    return "\n".join(parts) + "\n"


def cells(line: Line) -> tuple[str, ...]:
    """What, ours, theirs, figure, reach, reached."""
    reached = {True: "yes", False: "**no**", None: ""}[line.reached]
    reach = f"{SIGNS[line.reach.kind]} {number(line.reach.limit)}" if line.reach else ""
    theirs = f"{spread(line.theirs)} {line.unit}" if line.theirs else "-"
    return line.what, f"{spread(line.ours)} {line.unit}", theirs, spread(line.figure), reach, reached


def spread(found: Spread) -> str:
    """0.981 (0.972 to 0.99)."""
    if found.count == 1:
        return number(found.median)
    return f"{number(found.median)} ({number(found.low)} to {number(found.high)})"


def number(value: float) -> str:
    """Three significant digits: 0.981, 12.3, 1,230,000."""
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def _work(work: Mapping[str, Any]) -> str:
    shown = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in work.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "no work is counted"


def _repetitions(line: Line) -> str:
    return f"; {line.ours.count} repetitions" if line.ours.count > 1 else "; once"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
