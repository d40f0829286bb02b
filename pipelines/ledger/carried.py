"""Rows of a changed file that were made for an earlier version of it and have not changed.

The plan file that plans a version of a file also records which of its rows are carried: where they lie in this version,
and which shards made them. They are recorded in runs, so that appended rows cost one run. A run names the plan file and
the version for which its rows were planned, however often the file has changed since then. These stay the identity of a
row: (uri, etag, position).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EXTENSION = re.compile(r"@[0-9]+$")


class Origin(NamedTuple):
    """The rows of a file that a plan file planned to be made."""

    etag: str
    plan: int  # number of the plan file
    relative_path: str  # with which their default ids begin


@dataclass(frozen=True)
class CarriedRows:
    """The carried rows of one input version, as runs in the order of this version."""

    uri: str
    etag: str
    origins: tuple[Origin, ...]
    at: NDArray[np.int64]  # (n) first row of a run in this version
    origin: NDArray[np.int64]  # (n) index into `origins`
    start: NDArray[np.int64]  # (n) first row of the run in the version of its origin
    rows: NDArray[np.int64]  # (n)

    @property
    def total(self) -> int:
        """The number of rows."""
        return int(self.rows.sum())

    def at_of(self, etag: str, position: int, plan: int | None = None) -> int | None:
        """Return where a row of an earlier version lies in this one; None if it is not carried.

        Args:
            plan: the plan file that planned it; None for any.
        """
        for starts, stops, ats, _ in self._runs_of(etag, plan):
            run = int(np.searchsorted(stops, position, "right"))
            if run < len(starts) and starts[run] <= position:
                return int(ats[run] + position - starts[run])
        return None

    def at_of_all(self, etag: str, positions: NDArray[np.int64], plan: int | None = None) -> NDArray[np.int64]:
        """Return where rows (n) of an earlier version lie in this one; -1 for those that are not carried."""
        found = np.full(len(positions), -1, np.int64)
        for starts, stops, ats, _ in self._runs_of(etag, plan):
            runs = np.minimum(np.searchsorted(stops, positions, "right"), len(starts) - 1)
            inside = (starts[runs] <= positions) & (positions < stops[runs])
            found[inside] = (ats[runs] + positions - starts[runs])[inside]
        return found

    def taken(
        self, etag: str, at: NDArray[np.int64], own_at: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> CarriedRows:
        """Return the rows of another version that are rows of this one.

        Args:
            at: (n) first rows of runs in the other version.
            own_at: (n) first rows of the same runs in this version, all of whose rows are known here.
            rows: (n)
        """
        first = np.searchsorted(self.at, own_at, "right") - 1
        pieces = np.searchsorted(self.at, own_at + rows - 1, "right") - first  # of each run, cut where origins end
        run = np.repeat(np.arange(len(at)), pieces)
        own = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        low = np.maximum(own_at[run], self.at[own])
        high = np.minimum((own_at + rows)[run], (self.at + self.rows)[own])
        start = self.start[own] + low - self.at[own]
        return _merged(self.uri, etag, self.origins, (at[run] + low - own_at[run], self.origin[own], start, high - low))

    def count(self, etag: str, start: int, stop: int, plan: int | None = None) -> int:
        """Return how many of rows [start, stop) of an earlier version are carried."""
        found = 0
        for starts, stops, _, before in self._runs_of(etag, plan):
            first, last = np.searchsorted(stops, start, "right"), np.searchsorted(starts, stop, "left")
            if first < last:
                found += int(before[last] - before[first])
                found -= max(0, start - int(starts[first])) + max(0, int(stops[last - 1]) - stop)
        return found

    def _runs_of(self, etag: str, plan: int | None) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """Yield the runs of an earlier version that one plan file planned, or any."""
        plans = self._plans_of.get(etag, ()) if plan is None else (plan,)
        return (self._by_origin[etag, number] for number in plans if (etag, number) in self._by_origin)

    @cached_property
    def _plans_of(self) -> dict[str, list[int]]:
        plans: dict[str, list[int]] = {}
        for etag, plan in self._by_origin:
            plans.setdefault(etag, []).append(plan)
        return plans

    @cached_property
    def _by_origin(self) -> dict[tuple[str, int], tuple[NDArray[np.int64], ...]]:
        """(etag, plan) -> its runs in the order of their rows: start, stop, at, rows before each."""
        index: dict[tuple[str, int], tuple[NDArray[np.int64], ...]] = {}
        keys = [origin[:2] for origin in self.origins]
        for key in dict.fromkeys(keys):
            mine = np.isin(self.origin, [number for number, other in enumerate(keys) if other == key])
            order = np.argsort(self.start[mine])
            start, rows = self.start[mine][order], self.rows[mine][order]
            index[key] = start, start + rows, self.at[mine][order], np.concatenate([[0], np.cumsum(rows)])
        return index


def of_runs(uri: str, etag: str, runs: Iterable[tuple[int, Origin, int, int]]) -> CarriedRows:
    """Return runs (first row in this version, origin, first row in the version of the origin, rows), in any order."""
    chosen = list(runs)
    numbers = {origin: number for number, origin in enumerate(dict.fromkeys(run[1] for run in chosen))}
    table = [(at, numbers[origin], start, rows) for at, origin, start, rows in chosen]
    return _merged(uri, etag, tuple(numbers), tuple(np.array(table, np.int64).reshape(-1, 4).T))


def joined(first: CarriedRows, second: CarriedRows) -> CarriedRows:
    """Return the rows of one version that two parts have."""
    columns = [
        np.concatenate([getattr(first, name), getattr(second, name) + offset])
        for name, offset in (("at", 0), ("origin", len(first.origins)), ("start", 0), ("rows", 0))
    ]
    return _merged(first.uri, first.etag, first.origins + second.origins, tuple(columns))


def _merged(uri: str, etag: str, origins: tuple[Origin, ...], columns: tuple[NDArray[np.int64], ...]) -> CarriedRows:
    """Sort runs (at, origin, start, rows), and merge those that continue each other."""
    order = np.argsort(columns[0], kind="stable")
    at, origin, start, rows = (column[order] for column in columns)
    begins = np.ones(len(at), bool)
    begins[1:] = (origin[1:] != origin[:-1]) | (at[1:] != (at + rows)[:-1]) | (start[1:] != (start + rows)[:-1])
    first = np.flatnonzero(begins)
    total = np.add.reduceat(rows, first) if len(first) else rows
    return CarriedRows(uri, etag, origins, at[first], origin[first], start[first], total)


def extended_path(path: str, plan: int) -> str:
    """Return the path for the default ids of rows whose own default ids belonged to other rows of their file."""
    return f"{path}@{plan}"


def base_path(path: str) -> str:
    """Return the path of a file without what `extended_path` added. Names of input files end with a known suffix."""
    return EXTENSION.sub("", path)


class FileVersion(NamedTuple):
    """A planned version of a file."""

    etag: str
    plan: int  # number of the plan file that planned it
    carried: CarriedRows | None = None  # its rows that were made before; the plan file plans all others

    def holds(self, etag: str, positions: NDArray[np.int64], plan: int | None) -> NDArray[np.bool_]:
        """Return which rows (n) of an input version are in this one.

        Args:
            plan: the plan file that planned them for the first time; None for rows of retries and rounds.
        """
        if etag == self.etag and plan in (None, self.plan):
            return np.ones(len(positions), bool)
        if self.carried is None:
            return np.zeros(len(positions), bool)
        return self.carried.at_of_all(etag, positions, plan) >= 0
