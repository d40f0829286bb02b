"""Count the process deaths of a shard, and find the rows that cause them.

Deaths are create-only objects (`_crashes/<shard>/<n>.json`), because a row that kills a worker may also kill the
driver's machine. Below the budget, a shard is retried as a whole. After that:

    read, finish   are bisected: halves of the rows or samples run in a process of their own, down to single ones
    generate       its suspects, the samples of the call at each death, are generated one by one on a worker with no
                   other shard; a sample whose process dies twice while it is alone is poison

Only the rows or samples that were found are quarantined.
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

DEATHS_ALONE = 2  # one death may be caused by the memory of another process
MAX_CRASHES = 100  # per shard, in all stages


class Crashes:
    """The crash records of the shards of a run."""

    def __init__(self, ledger: Ledger, retries: RetriesSpec) -> None:
        self.ledger = ledger
        self.budget = max(1, retries.crash)
        self.patience = retries.infrastructure
        self.records: dict[str, list[dict[str, Any]]] = patiently(self._load, self.patience)

    def record(self, entry: PlannedShard, stage: Stage, error: str, samples: Sequence[str] = ()) -> int:
        """Record the death of a shard's worker, or of its read or finish process; returns how many there are now.

        Raises:
            PermanentError: processes keep dying although a bisection found no row that kills them.
        """
        alone = len(samples) == 1 and samples[0] in self.isolation(entry).suspects
        self._append(entry, {"stage": stage, "error": error, "samples": list(samples), "alone": alone})
        records = self.records[entry.shard.id]
        deaths = [record for record in records if record["stage"] != "bisected"]
        bisected = self._last_bisection(entry, stage)
        is_futile = bisected is not None and not (bisected["rows"] or bisected["samples"])
        if len(deaths) >= MAX_CRASHES or (is_futile and self._deaths(entry, stage) >= self.budget):
            raise PermanentError(
                f"shard {entry.shard.id} killed {len(deaths)} processes, the last in {stage} ({error}), but no single "
                "row of it does: check the memory of the nodes; what is committed stays."
            )
        return len(deaths)

    def needs_bisection(self, entry: PlannedShard, stage: Stage) -> bool:
        """Whether the reader or the finish died so often that the rows which kill it are to be searched for."""
        return stage != "generate" and self._deaths(entry, stage) >= self.budget

    def record_bisection(
        self, entry: PlannedShard, stage: Stage, rows: Sequence[tuple[int, int]] = (), samples: Sequence[str] = ()
    ) -> None:
        """Record a bisection: (span, position) of rows that kill the reader, or samples that kill finish."""
        result = {"stage": "bisected", "of": stage, "rows": [list(row) for row in rows], "samples": list(samples)}
        self._append(entry, {**result, "error": "", "alone": False})

    def isolation(self, entry: PlannedShard) -> Isolation:
        """How to treat a shard, according to its records."""
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
        """Deaths of a stage since its last bisection."""
        records = self.records.get(entry.shard.id, [])
        last = self._last_bisection(entry, stage)
        since = records[records.index(last) + 1 :] if last is not None else records
        return sum(record["stage"] == stage for record in since)

    def _last_bisection(self, entry: PlannedShard, stage: Stage) -> dict[str, Any] | None:
        records = self.records.get(entry.shard.id, [])
        return next((r for r in reversed(records) if r["stage"] == "bisected" and r.get("of", "read") == stage), None)

    def _load(self) -> dict[str, list[dict[str, Any]]]:
        return {shard: _distinct(self.ledger.crashes(shard)) for shard in self.ledger.shards_with_crashes()}

    def _append(self, entry: PlannedShard, record: dict[str, Any]) -> None:
        record = {**record, "event": secrets.token_hex(8)}
        patiently(lambda: self.ledger.record_crash(entry.shard.id, record), self.patience)
        self.records.setdefault(entry.shard.id, []).append(record)


def _distinct(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop records that were written twice because the answer to the first write was lost."""
    return list({record.get("event", number): record for number, record in enumerate(records)}.values())


class Bisection:
    """Search for the items that kill the process which handles them. An item is (number, position)."""

    def __init__(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """`ranges`: half-open (number, start, stop), for example the rows of span `number`."""
        self.killers: list[tuple[int, int]] = []
        self._deaths = 0  # of the current range, if it is a single item
        self._open = [(number, start, stop) for number, start, stop in ranges if start < stop]

    @property
    def current(self) -> tuple[int, int, int] | None:
        """The range to try next; None when the search is complete."""
        return self._open[0] if self._open else None

    def record(self, kills: bool) -> None:
        """Record the result of the current range. A single item must kill DEATHS_ALONE times."""
        number, start, stop = self._open[0]
        if kills and stop - start == 1:
            self._deaths += 1
            if self._deaths < DEATHS_ALONE:
                return
            self.killers.append((number, start))
        halves = []
        if kills and stop - start > 1:
            middle = (start + stop) // 2
            halves = [(number, start, middle), (number, middle, stop)]
        self._open = [*halves, *self._open[1:]]
        self._deaths = 0
