"""Alternating turns of two sides, medians with quartiles, ratios, targets.

A side is a function that does its work once and returns a `Turn`: a figure, such as rows/s or seconds, and a
description of the work. The sides alternate as A B B A A B B A, so that drift of the machine affects both, and each
pair gives one ratio. If the sides did different work in any turn, nothing is reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jointdit.errors import PermanentError

LEAST_PAIRS = 2


@dataclass(frozen=True)
class Settings:
    """Settings of one run of a bench."""

    folder: Path  # an empty folder, deleted afterwards
    seconds: float  # time limit on two idle cores
    quick: bool = False  # every step at the smallest size, for tests: the figures mean nothing


@dataclass(frozen=True)
class Turn:
    """One repetition of a side."""

    value: float  # in the line's unit
    work: Mapping[str, Any] = field(default_factory=dict)  # rows, bytes, output digest: equal on both sides
    detail: Mapping[str, float] = field(default_factory=dict)  # other figures of this turn, by name


Side = Callable[[], Turn]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repetitions."""

    median: float
    low: float  # the first quartile
    high: float  # the third
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one or more values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


@dataclass(frozen=True)
class Reach:
    """The target of a figure."""

    kind: Literal["at least", "at most"]
    limit: float

    def holds(self, figure: float) -> bool:
        """Return whether a figure meets the target. NaN does not."""
        return figure >= self.limit if self.kind == "at least" else figure <= self.limit


@dataclass(frozen=True)
class Line:
    """One line of the table. `figure`, a ratio or a measurement, is compared with the target `reach`."""

    what: str
    unit: str  # of ours and theirs
    ours: Spread
    figure: Spread
    theirs: Spread | None = None
    reach: Reach | None = None  # None: no target
    work: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # settings, slopes, profiles

    @property
    def reached(self) -> bool | None:
        """Whether the median meets the target; None without a target."""
        return self.reach.holds(self.figure.median) if self.reach else None


@dataclass(frozen=True)
class Pairs:
    """The turns of two sides, pair by pair."""

    ours: tuple[Turn, ...]
    theirs: tuple[Turn, ...]

    @property
    def ratio(self) -> Spread:
        """Ratios of ours to theirs, one for each pair."""
        return Spread.of([a.value / b.value for a, b in zip(self.ours, self.theirs, strict=True)])

    def detail(self, name: str) -> Spread:
        """Return another figure of our turns."""
        return Spread.of([turn.detail[name] for turn in self.ours])

    def line(self, what: str, unit: str, reach: Reach | None, notes: Sequence[str] = ()) -> Line:
        """Return the line of the ratio."""
        return Line(
            what=what,
            unit=unit,
            ours=Spread.of([turn.value for turn in self.ours]),
            theirs=Spread.of([turn.value for turn in self.theirs]),
            figure=self.ratio,
            reach=reach,
            work=dict(self.ours[0].work),
            notes=tuple(notes),
        )


def alternate(ours: Side, theirs: Side, *, pairs: int, seconds: float = float("inf"), warm_up: bool = True) -> Pairs:
    """Measure two sides in turns A B B A A B ..., at least LEAST_PAIRS pairs, and no new pair after `seconds`.

    With `warm_up` each side first runs once without being counted; the work is compared too.

    Raises:
        PermanentError: the sides did different work.
    """
    ended = time.monotonic() + seconds
    if warm_up:
        check_same_work(ours().work, theirs().work)
    turns: list[tuple[Turn, Turn]] = []
    for number in range(pairs):
        if number >= LEAST_PAIRS and time.monotonic() > ended:
            break
        if number % 2 == 0:
            a = ours()
            b = theirs()
        else:
            b = theirs()
            a = ours()
        check_same_work(a.work, b.work)
        turns.append((a, b))
    return Pairs(tuple(a for a, _ in turns), tuple(b for _, b in turns))


def repeat(side: Side, *, times: int, seconds: float = float("inf")) -> tuple[Turn, ...]:
    """Measure one side alone, at least once, with no new turn after `seconds`."""
    ended = time.monotonic() + seconds
    turns = [side()]
    while len(turns) < times and time.monotonic() < ended:
        turns.append(side())
    return tuple(turns)


def check_same_work(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise PermanentError if two sides did different work."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names or not ours:
        pairs = [f"{name} ({ours.get(name)!r} and {theirs.get(name)!r})" for name in names]
        what = f"differ in {', '.join(pairs)}" if names else "do not report their work"
        raise PermanentError(f"the two sides of the bench {what}: their times are not comparable, fix the bench.")


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Call a function; return the seconds and the result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def slope(points: Mapping[float, float]) -> tuple[float, float]:
    """Fit a line to at least two points by least squares; return its slope and its value at 0."""
    fitted = statistics.linear_regression(list(points), list(points.values()))
    return fitted.slope, fitted.intercept
