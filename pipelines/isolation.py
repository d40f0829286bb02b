"""Shards that take workers down: counted in the ledger, then taken apart until the one row is found.

Counts are create-only objects (`_crashes/<shard>/<n>.json`), because what kills a worker may kill the driver's machine
too. Below the budget a shard is simply tried again. From then on its suspects, the samples that were being made at each
death, are generated one by one on a worker that has nothing else to lose; a sample that dies alone twice is poison and
is quarantined. A reader's death is bisected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jointdit.errors import PermanentError
from pipelines.ledger import Ledger, PlannedShard
from pipelines.read import NO_ISOLATION, Isolation

DEATHS_ALONE = 2  # once may be somebody else's memory
MAX_CRASHES = 100  # a shard, whatever the reason


class Crashes:
    """The crash records of the shards of a run."""

    def __init__(self, ledger: Ledger, budget: int) -> None:
        self.ledger = ledger
        self.budget = max(1, budget)
        self.records: dict[str, list[dict[str, Any]]] = {
            shard: ledger.crashes(shard) for shard in ledger.shards_with_crashes()
        }

    def record(self, entry: PlannedShard, stage: str, error: str, samples: Sequence[str] = ()) -> int:
        """Count a death of a shard's worker, or of its read or finish process; returns how many there are by now.

        Raises:
            PermanentError: the shard kills what is not bisected, or keeps killing.
        """
        alone = len(samples) == 1 and samples[0] in self.isolation(entry).suspects
        self._append(entry, {"stage": stage, "error": error, "samples": list(samples), "alone": alone})
        records = self.records[entry.shard.id]
        finishes = sum(record["stage"] == "finish" for record in records)
        if finishes >= self.budget or len(records) >= MAX_CRASHES:
            raise PermanentError(
                f"shard {entry.shard.id} took {len(records)} processes down, the last in {stage} ({error}): look at "
                "its rows in _plan and at the memory of the nodes; what is committed stays."
            )
        return len(records)

    def needs_bisection(self, entry: PlannedShard) -> bool:
        """Whether its reader died often enough, and the rows it dies of are not known yet."""
        records = self.records.get(entry.shard.id, [])
        deaths = sum(record["stage"] == "read" for record in records)
        return deaths >= self.budget and not any(record["stage"] == "bisected" for record in records[-1:])

    def record_poison_rows(self, entry: PlannedShard, rows: Sequence[tuple[int, int]]) -> None:
        """Keep what a bisection found: (span, position) of each row whose reader dies."""
        self._append(entry, {"stage": "bisected", "error": "", "rows": [list(row) for row in rows]})

    def isolation(self, entry: PlannedShard) -> Isolation:
        """How to treat a shard, from its records alone."""
        records = self.records.get(entry.shard.id, [])
        rows = frozenset((span, position) for record in records for span, position in record.get("rows", ()))
        deaths = [record for record in records if record["stage"] == "generate"]
        if len(deaths) < self.budget:
            return Isolation(poison_rows=rows) if rows else NO_ISOLATION
        alone = Counter(record["samples"][0] for record in deaths if record["alone"])
        poison = frozenset(sample for sample, count in alone.items() if count >= DEATHS_ALONE)
        suspects = frozenset(sample for record in deaths for sample in record["samples"]) - poison
        return Isolation(suspects, poison, rows)

    def _append(self, entry: PlannedShard, record: dict[str, Any]) -> None:
        self.ledger.record_crash(entry.shard.id, record)
        self.records.setdefault(entry.shard.id, []).append(record)


def bisect_rows(entry: PlannedShard, kills: Callable[[int, int, int], bool]) -> list[tuple[int, int]]:
    """(span, position) of the rows that kill whoever reads them. `kills(span, start, stop)` tries a range."""
    found: list[tuple[int, int]] = []
    ranges = [(number, span.start, span.stop) for number, span in enumerate(entry.shard.spans)]
    while ranges:
        number, start, stop = ranges.pop(0)
        if kills(number, start, stop):
            if stop - start == 1:
                found.append((number, start))
            else:
                middle = (start + stop) // 2
                ranges[:0] = [(number, start, middle), (number, middle, stop)]
    return found
