"""Withhold samples from a partial version until their rows are whole, so that keep_best compares all of a row.

A row is open if one of its samples is planned again, or in a round of regeneration, and not committed, or if a rejected
sample is yet to be replaced by a new one. Samples of open rows that no earlier version decided are withheld: they end
nowhere yet, and a later version decides them. What was decided stands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipelines.ledger.counted import Uncovered
from pipelines.ledger.plan_tables import is_first
from pipelines.ledger.versions import Key
from pipelines.plan.regeneration import rows_to_regenerate
from pipelines.records import RowKey, Span
from pipelines.spec.job import JobSpec

if TYPE_CHECKING:
    from pipelines.dataset.decide import DecidedShard


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


def withheld_keys(work: Uncovered, waiting: Collection[RowKey], shards: Mapping[str, DecidedShard]) -> set[Key]:
    """Return the samples of some rows that count: those of `shards`, and of other shards of the latest version."""
    keys: set[Key] = set()
    for shard in shards.values():
        for sample, _ in shard.rows:
            span = shard.entry.shard.spans[sample.span]
            if sample.id in shard.decided and (span.uri, span.etag, sample.position) in waiting:
                keys.add((sample.id, shard.entry.shard.id))
    for rows in work.before.all_shards() if waiting else ():
        if rows.shard not in shards:
            names = ("id", "since", "uri", "etag", "position")
            for identifier, since, *row in zip(*(rows.samples[name].to_pylist() for name in names), strict=True):
                if since and tuple(row) in waiting:
                    keys.add((identifier, rows.shard))
    return keys


def _rows_of(span: Span) -> set[RowKey]:
    return {(span.uri, span.etag, position) for position in range(span.start, span.stop)}
