"""What the next version must look at: shards that the latest version does not cover, and those that they affect.

A planned file affects the shards of its earlier input versions, and a retry those that made its samples before. Both
are found by column in the plan files. All other shards stay as they are in their segments.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.carried import FileVersion
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.plan_tables import current_rows, flat_spans, is_first, parents_of, versions_of

SHARDS_AT_ONCE = 512


@dataclass(frozen=True)
class Changes:
    """The shards of a plan that the next version must look at."""

    new: Mapping[int, list[int]]  # plan file -> places of the shards that the latest version does not cover
    affected: Mapping[int, list[int]]  # plan file -> places of covered shards whose samples may count or not by now
    versions: dict[str, FileVersion]  # uri -> its latest planned version
    retries: list[PlannedShard]  # of the whole plan
    plans: tuple[int, ...]

    @property
    def next_plan(self) -> int:
        """The number of a plan file that follows from these changes, and fails to be created if the plan has grown."""
        return max(self.plans, default=0) + 1

    @property
    def may_share_rows(self) -> bool:
        """Whether two current files may hold the same row. Files of one listing never do (plan/propose.py)."""
        return len({version.plan for version in self.versions.values()}) > 1

    def chunks(self, ledger: Ledger) -> Iterator[list[PlannedShard]]:
        """Yield the shards in (plan, position) order, some at a time. A shard that was planned twice comes last."""
        last: dict[str, tuple[int, int]] = {}
        places = [(n, place) for n in self.plans for place in sorted({*self.new.get(n, ()), *self.affected.get(n, ())})]
        if len(self.plans) > 1:
            tables = ledger.plan_tables()
            last = {tables[n]["shard"][place].as_py(): (n, place) for n, place in places}
        for start in range(0, len(places), SHARDS_AT_ONCE):
            by_plan: dict[int, list[int]] = {}
            for number, place in places[start : start + SHARDS_AT_ONCE]:
                by_plan.setdefault(number, []).append(place)
            entries = [entry for number, chosen in by_plan.items() for entry in ledger.entries(number, chosen)]
            yield [e for e in entries if last.get(e.shard.id, (e.plan, e.position)) == (e.plan, e.position)]


def find_changes(
    ledger: Ledger, covered: pa.ChunkedArray, published: Collection[int], whole: pa.ChunkedArray | None = None
) -> Changes:
    """Compare the plan with what the latest version covers.

    Args:
        covered: the ids of the shards in its segments.
        whole: those of them whose samples all count. A changed file does not affect them if it carries all their rows.
        published: the numbers of the plan files that it is made from.
    """
    tables = ledger.plan_tables()
    known = covered.combine_chunks() if isinstance(covered, pa.ChunkedArray) else covered
    masks = {number: pc.is_in(table["shard"], known) for number, table in tables.items()}
    new = {number: pc.indices_nonzero(pc.invert(mask)).to_pylist() for number, mask in masks.items()}
    added = {number: table for number, table in tables.items() if number not in published}
    retries = [entry for number, table in tables.items() for entry in _retries(ledger, number, table)]
    versions = versions_of(tables)
    affected: dict[int, list[int]] = {}
    if len(known) and added:
        uris = pa.chunked_array(
            [flat_spans(table.filter(is_first(table))).field("uri") for table in added.values()], pa.string()
        ).unique()
        again: dict[tuple[str, str], list[int]] = {}
        for entry in retries:
            for span in entry.shard.spans if entry.plan in added else ():
                again.setdefault((span.uri, span.etag), []).extend(range(span.start, span.stop))
        for number, table in tables.items():
            places = set(_with_uri(table, uris))
            if places and whole is not None and any(version.carried is not None for version in versions.values()):
                is_whole = pc.is_in(table["shard"], whole.combine_chunks()).to_numpy()
                is_whole &= current_rows(number, table, versions).rows == table["rows"].to_numpy()
                places -= set(np.flatnonzero(is_whole & (table["rows"].to_numpy() > 0)).tolist())
            places |= set(_with_rows(table, {k: sorted(v) for k, v in again.items()}))
            if found := sorted(place for place in places if masks[number][place].as_py()):
                affected[number] = found
    return Changes(new, affected, versions, retries, tuple(tables))


def shards_with_rows(ledger: Ledger, rows: Mapping[tuple[str, str], list[int]]) -> set[str]:
    """Return the planned shards that have one of these rows: (uri, etag) -> positions, sorted."""
    tables = ledger.plan_tables().values() if rows else ()
    return {table["shard"][place].as_py() for table in tables for place in _with_rows(table, rows)}


def _retries(ledger: Ledger, number: int, table: pa.Table) -> list[PlannedShard]:
    places = pc.indices_nonzero(pc.greater(pc.fill_null(table["retry"], 0), 0)).to_pylist()
    return ledger.entries(number, places) if places else []


def _with_uri(table: pa.Table, uris: pa.Array) -> list[int]:
    """Return the places of the shards with a span of one of these files."""
    hit = pc.is_in(flat_spans(table).field("uri"), uris)
    places: list[int] = pc.unique(parents_of(table).filter(hit)).to_pylist()
    return places


def _with_rows(table: pa.Table, rows: Mapping[tuple[str, str], list[int]]) -> Iterator[int]:
    """Yield the places of the shards with one of these rows: (uri, etag) -> positions, sorted."""
    if not rows:
        return
    spans, parents = flat_spans(table), parents_of(table)
    hit = pc.is_in(spans.field("uri"), pa.array(sorted({uri for uri, _ in rows}), pa.string()))
    for span, place in zip(spans.filter(hit).to_pylist(), parents.filter(hit).to_pylist(), strict=True):
        positions = rows.get((span["uri"], span["etag"]), [])
        following = bisect_left(positions, span["start"])
        if following < len(positions) and positions[following] < span["stop"]:
            yield place
