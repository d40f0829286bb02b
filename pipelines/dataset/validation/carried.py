"""Check the rows of changed files that a plan carries instead of planning them."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence

from pipelines.ledger.carried import CarriedRows
from pipelines.ledger.names import plan_file

Ranges = Mapping[tuple[str, int], Sequence[tuple[int, int]]]  # (uri, plan file) -> rows that are planned


def check_carried(
    carried: Sequence[tuple[int, CarriedRows]], planned: Ranges, versions: Mapping[str, Sequence[tuple[str, int]]]
) -> Iterator[str]:
    """Check that the plan files that carried rows name as their origins have planned them.

    Args:
        carried: (plan file, rows that it carries).
        versions: uri -> (etag, plan file) of its input versions.
    """
    sorted_ranges: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for plan, rows in carried:
        for number, start, count in zip(rows.origin.tolist(), rows.start.tolist(), rows.rows.tolist(), strict=True):
            origin, stop = rows.origins[number], start + count
            file = rows.uri, origin.plan
            if file not in sorted_ranges:
                sorted_ranges[file] = _joined(planned.get(file, ()))
            is_planned = (origin.etag, origin.plan) in versions.get(rows.uri, ())
            if not is_planned or origin.plan >= plan or not _holds(sorted_ranges[file], start, stop):
                name, planner = plan_file(plan), plan_file(origin.plan)
                yield f"{name} carries rows {start} to {stop} of {rows.uri}, which {planner} did not plan."


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges in order, adjacent ones joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _holds(ranges: Sequence[tuple[int, int]], start: int, stop: int) -> bool:
    """Return whether one of these ranges, which are in order, has all rows from start to stop."""
    place = bisect(ranges, (start, stop))
    near = ranges[max(place - 1, 0) : place + 1]
    return any(low <= start and stop <= high for low, high in near)
