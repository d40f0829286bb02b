"""Two sides by turns, medians with spread, ratios, reach.

A side is a function that does its work once and returns a `Turn`: a figure, such as rows/s or seconds, and what work
was done for it. The sides take turns A B B A A B B A, so that what drifts on the machine falls on both, and each pair
gives one ratio. Both must have done the same work in every turn, or nothing is reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jointdit.errors import PermanentError

LEAST_PAIRS = 2


@dataclass(frozen=True)
class Settings:
    """What a bench is told."""

    folder: Path  # empty, for its files; removed afterwards
    seconds: float  # what it may take on two quiet cores
    quick: bool = False  # as little as runs every step of it: for tests, the figures mean nothing


@dataclass(frozen=True)
class Turn:
    """One repetition of a side."""

    value: float  # in the line's unit
    work: Mapping[str, Any] = field(default_factory=dict)  # rows, bytes, a digest of the output: equal on both sides
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
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


@dataclass(frozen=True)
class Reach:
    """What is asked of a figure."""

    kind: Literal["at least", "at most"]
    limit: float

    def holds(self, figure: float) -> bool:
        """Whether the figure is there. NaN never is."""
        return figure >= self.limit if self.kind == "at least" else figure <= self.limit


@dataclass(frozen=True)
class Line:
    """One line of the table: `figure` is what `reach` asks about, a ratio or a measurement."""

    what: str
    unit: str  # of ours and theirs
    ours: Spread
    figure: Spread
    theirs: Spread | None = None
    reach: Reach | None = None  # None: shown, and nothing is asked
    work: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences: settings, slopes, what a profile shows

    @property
    def reached(self) -> bool | None:
        """Whether the median is where it should be."""
        return self.reach.holds(self.figure.median) if self.reach else None


@dataclass(frozen=True)
class Pairs:
    """The turns of two sides, pair by pair."""

    ours: tuple[Turn, ...]
    theirs: tuple[Turn, ...]

    @property
    def ratio(self) -> Spread:
        """Ours over theirs, of each pair."""
        return Spread.of([a.value / b.value for a, b in zip(self.ours, self.theirs, strict=True)])

    def detail(self, name: str, side: Literal["ours", "theirs"] = "ours") -> Spread:
        """Another figure of the turns of a side."""
        return Spread.of([turn.detail[name] for turn in (self.ours if side == "ours" else self.theirs)])

    def line(self, what: str, unit: str, reach: Reach | None, notes: Sequence[str] = ()) -> Line:
        """The table's line about the ratio."""
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
    """Measure two sides by turns: A B B A A B ... The last pairs are left out once `seconds` are over.

    `warm_up`: each side once before, not counted; its work is compared too.

    Raises:
        PermanentError: the sides did different work.
    """
    ended = time.monotonic() + seconds
    if warm_up:
        check_same_work(ours().work, theirs().work)
    found: list[tuple[Turn, Turn]] = []
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
        found.append((a, b))
    return Pairs(tuple(a for a, _ in found), tuple(b for _, b in found))


def repeat(side: Side, *, times: int, seconds: float = float("inf")) -> tuple[Turn, ...]:
    """Turns of one side alone; the last ones are left out once `seconds` are over."""
    ended = time.monotonic() + seconds
    turns = [side()]
    while len(turns) < times and time.monotonic() < ended:
        turns.append(side())
    return tuple(turns)


def alone(what: str, unit: str, turns: Sequence[Turn], reach: Reach | None, notes: Sequence[str] = ()) -> Line:
    """The line of a measurement that is compared with a number."""
    figure = Spread.of([turn.value for turn in turns])
    return Line(what, unit, figure, figure, reach=reach, work=dict(turns[0].work), notes=tuple(notes))


def check_same_work(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise PermanentError where two sides differ in what they did."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if names or not ours:
        pairs = [f"{name} ({ours.get(name)!r} and {theirs.get(name)!r})" for name in names]
        what = f"differ in {', '.join(pairs)}" if names else "do not say what they did"
        raise PermanentError(f"the two sides of the bench {what}: their times cannot be compared, mend the bench.")


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result) of a call."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def slope(points: Mapping[float, float]) -> tuple[float, float]:
    """(growth of y with each x, y at 0): the straight line of least squares through at least two points."""
    x, y = list(points), list(points.values())
    fitted = statistics.linear_regression(x, y)
    return fitted.slope, fitted.intercept


Measure = Callable[[Settings], Iterator[Line]]
