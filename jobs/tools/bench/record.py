"""Results of benches with machine and commit, as JSON, as text and as BENCH.md.

jobs/tools/BENCH.json holds the last result of each bench. BENCH.md is written from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.tools.bench import BENCHES
from jobs.tools.bench.frame import Line, Reach, Spread

FOLDER = Path(__file__).parents[1]
SIGNS = {"at least": "≥", "at most": "≤"}
COLUMNS = ("bench", "measurement", "ours", "baseline", "ratio or figure", "target", "met")
HEAD = """# Benches

Written by `{command}`, not by hand. Each figure is the median of the repetitions, with quartiles. A ratio compares two
sides that alternate in one run on one machine; its quartiles are those of the pairs. A bench whose sides did different
work reports nothing. `jointdit bench --list` shows what each bench measures, `jobs/tools/bench/` how.
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
    load: float  # of the machine before the bench
    quick: bool = False
    error: str = ""  # why the bench failed; empty if it did not

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        fields = asdict(self)
        for values, line in zip(fields["lines"], self.lines, strict=True):
            values["reached"] = line.reached
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Result:
        """Read the output of `to_json`."""
        return cls(**{**fields, "lines": tuple(map(_line, fields["lines"]))})


def _line(fields: Mapping[str, Any]) -> Line:
    fields = {name: value for name, value in fields.items() if name != "reached"}
    spreads = {name: Spread(**fields[name]) for name in ("ours", "theirs", "figure") if fields[name]}
    reach = Reach(**fields["reach"]) if fields["reach"] else None
    return Line(**{**fields, **spreads, "reach": reach, "notes": tuple(fields["notes"])})


def read_results(folder: Path = FOLDER) -> dict[str, Result]:
    """Return the last result of each bench."""
    try:
        fields = json.loads((folder / "BENCH.json").read_text())
    except FileNotFoundError:
        return {}
    return {values["name"]: Result.from_json(values) for values in fields}


def write_results(new: Sequence[Result], command: str, folder: Path = FOLDER) -> Path:
    """Replace older results by new ones and write BENCH.md; return its path."""
    results = {**read_results(folder), **{result.name: result for result in new}}
    ordered = [results[name] for name in BENCHES if name in results]
    (folder / "BENCH.json").write_text(json.dumps([result.to_json() for result in ordered], indent=1) + "\n")
    path = folder / "BENCH.md"
    path.write_text(markdown(ordered, command))
    return path


def markdown(results: Sequence[Result], command: str) -> str:
    """Return BENCH.md."""
    parts = [HEAD.format(command=command)]
    parts += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for result in results:
        if result.error:
            parts.append(f"| {result.name} | failed: {_cell(result.error)} | | | | | no |")
        parts += [f"| {' | '.join(map(_cell, (result.name, *cells(line))))} |" for line in result.lines]
    parts.append("\n## How each was measured\n")
    for result in results:
        bench = BENCHES[result.name]
        baseline = f", compared with {bench.baseline}" if bench.baseline != "-" else ""
        parts.append(f"### {result.name}\n\n{bench.measures}{baseline}.\n")
        load = f"load {result.load:g} before the bench"
        parts.append(f"{result.finished}, commit {result.commit}, {result.seconds:.0f} s, {load}.\n")
        for line in result.lines:
            parts.append(f"- {line.what}: {_work(line.work)}{_repetitions(line)}")
            parts += [f"  - {note}" for note in line.notes]
        parts.append("")
    parts.append("## The machine\n")
    machines = {json.dumps(result.machine, sort_keys=True): result.machine for result in results}
    for number, machine in enumerate(machines.values(), 1):
        packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        parts.append(
            f"{number}. {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
            f"Python {machine['python']}, {packages}."
        )
    return "\n".join(parts) + "\n"


def cells(line: Line) -> tuple[str, ...]:
    """Return the cells of a line, in the order of COLUMNS without the bench."""
    reached = {True: "yes", False: "**no**", None: ""}[line.reached]
    reach = f"{SIGNS[line.reach.kind]} {number(line.reach.limit)}" if line.reach else ""
    theirs = f"{spread(line.theirs)} {line.unit}" if line.theirs else "-"
    return line.what, f"{spread(line.ours)} {line.unit}", theirs, spread(line.figure), reach, reached


def spread(values: Spread) -> str:
    """Format median and quartiles: 0.981 (0.972 to 0.99)."""
    if values.count == 1:
        return number(values.median)
    return f"{number(values.median)} ({number(values.low)} to {number(values.high)})"


def number(value: float) -> str:
    """Format with three significant digits: 0.981, 12.3, 1,230,000."""
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def _work(work: Mapping[str, Any]) -> str:
    shown = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in work.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "no work counted"


def _repetitions(line: Line) -> str:
    return f"; {line.ours.count} repetitions" if line.ours.count > 1 else "; once"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
