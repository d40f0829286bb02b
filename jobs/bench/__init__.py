"""Benches: how fast it is, always beside something measured in the same run. `jointdit bench --list` names them.

    frame.py      two sides by turns, medians with spread, ratios, reach; fails if the sides did different work
    record.py     what a bench found, with machine and commit, as JSON and as the table in jobs/BENCH.md
    machine.py    which machine, which versions, which commit
    command.py    `jointdit bench`
    the others    one file a bench, each with `measure(settings)`, which yields lines of the table as it has them

A new bench is a file with `measure` and an entry in BENCHES. This file is imported by the command line, so it imports
nothing heavy, and a bench is imported when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bench:
    """One entry of the list."""

    module: str  # in jobs.bench
    question: str  # what is measured
    compared_with: str  # the other side, or "-"
    seconds: float  # what it may take on two quiet cores
    in_all: bool = True  # part of `make bench`


BENCHES = {
    "startup": Bench("startup", "seconds until `jointdit --help` and `plan` have answered", "python -c pass", 40),
}
