"""Rows of a changed file that were made for an earlier version of it and have not changed.

The plan file that plans a version of a file also records which of its rows are carried: where they lie in this version,
and which shards made them. They are recorded in runs, so that appended rows cost one run. A run names the plan file and
the version for which its rows were planned, however often the file has changed since then. These stay the identity of a
row: (uri, etag, position).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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
        for (of_etag, of_plan), (starts, stops, ats, _) in self._by_origin.items():
            if of_etag == etag and plan in (None, of_plan):
                run = int(np.searchsorted(stops, position, "right"))
                if run < len(starts) and starts[run] <= position:
                    return int(ats[run] + position - starts[run])
        return None

    def count(self, etag: str, start: int, stop: int, plan: int | None = None) -> int:
        """Return how many of rows [start, stop) of an earlier version are carried."""
        found = 0
        for (of_etag, of_plan), (starts, stops, _, before) in self._by_origin.items():
            if of_etag == etag and plan in (None, of_plan):
                first, last = np.searchsorted(stops, start, "right"), np.searchsorted(starts, stop, "left")
                if first < last:
                    found += int(before[last] - before[first])
                    found -= max(0, start - int(starts[first])) + max(0, int(stops[last - 1]) - stop)
        return found

    @cached_property
    def _by_origin(self) -> dict[tuple[str, int], tuple[NDArray[np.int64], ...]]:
        """(etag, plan) -> its runs in the order of their rows: start, stop, at, rows before each."""
        index = {}
        keys = [origin[:2] for origin in self.origins]
        for key in dict.fromkeys(keys):
            mine = np.isin(self.origin, [number for number, other in enumerate(keys) if other == key])
            order = np.argsort(self.start[mine])
            start, rows = self.start[mine][order], self.rows[mine][order]
            index[key] = start, start + rows, self.at[mine][order], np.concatenate([[0], np.cumsum(rows)])
        return index


class FileVersion(NamedTuple):
    """The latest planned version of a file."""

    etag: str
    plan: int  # number of the plan file that planned it
    carried: CarriedRows | None = None  # its rows that were made before; the plan file plans all others
