"""Choose the rows of a gallery where a version has more than the limit.

Some rows of each outcome are shown, spread over all files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pipelines.ledger.entries import Outcome
from pipelines.ledger.segments import VersionFile


def shares(counts: Mapping[Outcome, int], limit: int) -> dict[Outcome, int]:
    """Return how many rows of each outcome to show, at most `limit` in all.

    Rare outcomes are shown in full and the rest goes to frequent ones, so 40 rejects among 100,000 rows are all shown.
    """
    left = limit
    chosen: dict[Outcome, int] = {}
    ordered = sorted(counts, key=lambda outcome: counts[outcome])
    for position, outcome in enumerate(ordered):
        chosen[outcome] = min(counts[outcome], left // (len(ordered) - position))
        left -= chosen[outcome]
    return chosen


def spread(files: Iterable[VersionFile], total: int, count: int) -> Iterator[tuple[VersionFile, int]]:
    """Spread `count` rows over files in proportion to their rows. Yields (file, number of its first rows).

    total: the rows of all files.
    """
    before = taken = 0
    for file in files:
        before += file.rows
        until = min(count, total) * before // max(total, 1)
        if until > taken:
            yield file, until - taken
        taken = until
