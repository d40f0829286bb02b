"""Withhold samples from a partial version until their rows are whole, so that keep_best compares all of a row.

A row is open if one of its samples is planned again, or in a round of regeneration, and not committed, or if a rejected
sample is yet to be replaced by a new one. Samples of open rows that no earlier version decided are withheld: they end
nowhere yet, and a later version decides them. What was decided stands.
"""

from __future__ import annotations

import pyarrow.compute as pc

from pipelines.ledger.counted import Uncovered
from pipelines.ledger.plan_tables import is_first
from pipelines.plan.regeneration import rows_to_regenerate
from pipelines.records import RowKey, Span
from pipelines.spec.job import JobSpec


def open_rows(spec: JobSpec, work: Uncovered) -> set[RowKey]:
    """Return the rows that a partial version decides nothing new of. `work` is `Uncovered.committed`."""
    rows: set[RowKey] = set()
    planned = work.as_planned()
    for number, places in planned.changes.new.items():
        table = work.ledger.plan_tables()[number]
        later = pc.indices_nonzero(pc.invert(is_first(table))).to_pylist()
        absent = sorted(set(later).intersection(places).difference(work.changes.new[number]))
        for entry in work.ledger.entries(number, absent):
            for span in entry.shard.spans:
                rows.update(_rows_of(span))
    if spec.quality.regenerate:
        for spans in rows_to_regenerate(spec, planned).values():
            for span in spans:
                rows.update(_rows_of(span))
    return rows


def _rows_of(span: Span) -> set[RowKey]:
    return {(span.uri, span.etag, position) for position in range(span.start, span.stop)}
