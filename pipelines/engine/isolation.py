"""Shards that take processes down: counted in the ledger, then taken apart until the one row is found.

Counts are create-only objects (`_crashes/<shard>/<n>.json`), because what kills a worker may kill the driver's machine
too. Below the budget a shard is simply tried again. From then on

    read, finish   are bisected: halves of the rows or samples in a process of their own, until single ones are left
    generate       its suspects, the samples that were being made at each death, are generated one by one on a worker
                   that has nothing else to lose; a sample that dies alone twice is poison

and only what was found is quarantined.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jointdit.errors import PermanentError
from pipelines.engine.faults import Stage
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.spec.job import RetriesSpec
from pipelines.stages.read import NO_ISOLATION, Isolation
from pipelines.store.retries import patiently

DEATHS_ALONE = 2  # once may be somebody else's memory
MAX_CRASHES = 100  # a shard, whatever the reason


class Crashes:
    """The crash records of the shards of a run."""

    def __init__(self, ledger: Ledger, retries: RetriesSpec) -> None:
        self.ledger = ledger
        self.budget = max(1, retries.crash)
        self.patience = retries.infrastructure
        self.records: dict[str, list[dict[str, Any]]] = patiently(self._load, self.patience)

    def record(self, entry: PlannedShard, stage: Stage, error: str, samples: Sequence[str] = ()) -> int:
        """Count a death of a shard's worker, or of its read or finish process; returns how many there are by now.

        Raises:
            PermanentError: the shard goes on killing after no row of it could be found guilty.
        """
        alone = len(samples) == 1 and samples[0] in self.isolation(entry).suspects
        self._append(entry, {"stage": stage, "error": error, "samples": list(samples), "alone": alone})
        records = self.records[entry.shard.id]
        deaths = [record for record in records if record["stage"] != "bisected"]
        bisected = self._last_bisection(entry, stage)
        found_nothing = bisected is not None and not (bisected["rows"] or bisected["samples"])
        if len(deaths) >= MAX_CRASHES or (found_nothing and self._deaths(entry, stage) >= self.budget):
            raise PermanentError(
                f"shard {entry.shard.id} took {len(deaths)} processes down, the last in {stage} ({error}), and no "
                "single row of it does: look at the memory of the nodes; what is committed stays."
            )
        return len(deaths)

    def needs_bisection(self, entry: PlannedShard, stage: Stage) -> bool:
        """Whether its reader or its finish died often enough, and the rows it dies of are not known yet."""
        return stage != "generate" and self._deaths(entry, stage) >= self.budget

    def record_bisection(
        self, entry: PlannedShard, stage: Stage, rows: Sequence[tuple[int, int]] = (), samples: Sequence[str] = ()
    ) -> None:
        """Keep what a bisection found: (span, position) of rows whose reader dies, ids of samples whose finish does."""
        found = {"stage": "bisected", "of": stage, "rows": [list(row) for row in rows], "samples": list(samples)}
        self._append(entry, {**found, "error": "", "alone": False})

    def isolation(self, entry: PlannedShard) -> Isolation:
        """How to treat a shard, from its records alone."""
        records = self.records.get(entry.shard.id)
        if not records:
            return NO_ISOLATION
        bisections = [record for record in records if record["stage"] == "bisected"]
        rows = frozenset((span, position) for record in bisections for span, position in record["rows"])
        unfinishable = frozenset(sample for record in bisections for sample in record["samples"])
        deaths = [record for record in records if record["stage"] == "generate"]
        if len(deaths) < self.budget:
            return Isolation(poison_rows=rows, unfinishable=unfinishable)
        alone = Counter(record["samples"][0] for record in deaths if record["alone"])
        poison = frozenset(sample for sample, count in alone.items() if count >= DEATHS_ALONE)
        suspects = frozenset(sample for record in deaths for sample in record["samples"]) - poison
        return Isolation(suspects, poison, rows, unfinishable)

    def _deaths(self, entry: PlannedShard, stage: Stage) -> int:
        """How often a stage died since it was last bisected."""
        records = self.records.get(entry.shard.id, [])
        last = self._last_bisection(entry, stage)
        since = records[records.index(last) + 1 :] if last is not None else records
        return sum(record["stage"] == stage for record in since)

    def _last_bisection(self, entry: PlannedShard, stage: Stage) -> dict[str, Any] | None:
        records = self.records.get(entry.shard.id, [])
        return next((r for r in reversed(records) if r["stage"] == "bisected" and r.get("of", "read") == stage), None)

    def _load(self) -> dict[str, list[dict[str, Any]]]:
        return {shard: _each_once(self.ledger.crashes(shard)) for shard in self.ledger.shards_with_crashes()}

    def _append(self, entry: PlannedShard, record: dict[str, Any]) -> None:
        record = {**record, "event": secrets.token_hex(8)}
        patiently(lambda: self.ledger.record_crash(entry.shard.id, record), self.patience)
        self.records.setdefault(entry.shard.id, []).append(record)


def _each_once(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without records that were written twice because the answer to the first write was lost."""
    return list({record.get("event", number): record for number, record in enumerate(records)}.values())


class Bisection:
    """Which items of some ranges kill the process that tries them; the next range to try, and what came of it."""

    def __init__(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """`ranges`: (number, start, stop), half open; an item is (number, position)."""
        self.killers: list[tuple[int, int]] = []
        self._deaths = 0  # of the current range, where it is a single item
        self._open = [each for each in ranges if each[1] < each[2]]

    @property
    def current(self) -> tuple[int, int, int] | None:
        """The range to try next; None at the end."""
        return self._open[0] if self._open else None

    def record(self, kills: bool) -> None:
        """What came of trying the current range. A single item is found after it killed twice: see DEATHS_ALONE."""
        number, start, stop = self._open[0]
        if kills and stop - start == 1:
            self._deaths += 1
            if self._deaths < DEATHS_ALONE:
                return
            self.killers.append((number, start))
        self._open.pop(0)
        self._deaths = 0
        if kills and stop - start > 1:
            middle = (start + stop) // 2
            self._open[:0] = [(number, start, middle), (number, middle, stop)]
