"""What the next version must look at: shards that the latest version does not cover, and those that they affect.

Where another version of a file counts than in the latest version, all shards of that file are affected. A retry affects
those that made its samples before. Both are found by column in the plan files. Shards with samples that a partial
version withheld are affected too. All other shards stay as they are in their segments.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.basis import Basis, Missing, Versions, committed_basis, differing, missing_of, planned_basis
from pipelines.ledger.before import Before
from pipelines.ledger.counting import InputVersions
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.plan_tables import current_rows, flat_spans, parents_of
from pipelines.ledger.resume import found_commits

SHARDS_AT_ONCE = 512
NOTHING = Missing(0, 0)


@dataclass(frozen=True)
class Changes:
    """The shards of a plan that the next version must look at."""

    new: Mapping[int, list[int]]  # plan file -> places of the shards that the latest version does not cover
    affected: Mapping[int, list[int]]  # plan file -> places of covered shards whose samples may count or not by now
    versions: Versions  # of each file the version that counts (basis.py)
    retries: list[PlannedShard]  # those that count
    plans: tuple[int, ...]
    missing: Missing = NOTHING  # what is left out for want of a commit

    @property
    def next_plan(self) -> int:
        """The number of a plan file that follows from these changes, and fails to be created if the plan has grown."""
        return max(self.plans, default=0) + 1

    @property
    def may_share_rows(self) -> bool:
        """Whether two current files may hold the same row. Files of one listing never do (plan/propose.py)."""
        return len({version.plan for version in self.versions.values()}) > 1

    def chunks(self, ledger: Ledger) -> Iterator[list[PlannedShard]]:
        """Yield the shards in (plan, position) order, some at a time.

        A shard that was planned twice, because its files changed back, comes last, or where its files count.
        """
        last: dict[str, tuple[int, int]] = {}
        places = [(n, place) for n in self.plans for place in sorted({*self.new.get(n, ()), *self.affected.get(n, ())})]
        if len(self.plans) > 1:
            tables, current = ledger.plan_tables(), InputVersions(self.versions)
            for n, place in places:
                shard = tables[n]["shard"][place].as_py()
                if shard not in last or not current.is_superseded(ledger.entries(n, [place])[0]):
                    last[shard] = (n, place)
        for start in range(0, len(places), SHARDS_AT_ONCE):
            by_plan: dict[int, list[int]] = {}
            for number, place in places[start : start + SHARDS_AT_ONCE]:
                by_plan.setdefault(number, []).append(place)
            entries = [entry for number, chosen in by_plan.items() for entry in ledger.entries(number, chosen)]
            yield [e for e in entries if last.get(e.shard.id, (e.plan, e.position)) == (e.plan, e.position)]


def find_changes(
    ledger: Ledger, before: Before, plans: Collection[int] | None = None, is_partial: bool = False
) -> Changes:
    """Compare the plan with what the latest version covers.

    Args:
        plans: the plan files to compare; None: all.
        is_partial: leave out new shards that have no commit, and count what a partial version does.
    """
    tables = {n: table for n, table in ledger.plan_tables().items() if plans is None or n in plans}
    known = before.covered.combine_chunks()
    masks = {number: pc.is_in(table["shard"], known) for number, table in tables.items()}
    new = {number: pc.indices_nonzero(pc.invert(mask)).to_pylist() for number, mask in masks.items()}
    retries = [entry for number, table in tables.items() for entry in _retries(ledger, number, table)]
    missing = NOTHING
    if is_partial:
        found = pa.array(sorted(_committed(ledger, tables, new, len(known))), pa.string())
        committed = pa.concat_arrays([known, found])
        made = {number: pc.is_in(table["shard"], committed).to_numpy() for number, table in tables.items()}
        new = {number: [place for place in places if made[number][place]] for number, places in new.items()}
        basis = committed_basis(tables, retries, committed)
        missing = missing_of(tables, basis, made)
    else:
        basis = planned_basis(tables, retries)
    affected = {}
    if len(known):
        latest = before.latest
        is_same = latest is not None and not (is_partial or latest.is_partial) and set(tables) <= set(latest.plans)
        then = basis if is_same else _basis_of(before, tables, retries, known)
        affected = _affected(before, tables, masks, basis, then)
    return Changes(new, affected, basis.versions, basis.retries, tuple(tables), missing)


def _committed(
    ledger: Ledger, tables: Mapping[int, pa.Table], new: Mapping[int, Sequence[int]], known: int
) -> set[str]:
    """Return those of the new shards that have a commit."""
    shards = [s for n, places in new.items() for s in tables[n]["shard"].take(pa.array(places, pa.int64())).to_pylist()]
    return found_commits(ledger, shards, known)


def _basis_of(before: Before, tables: Mapping[int, pa.Table], retries: list[PlannedShard], known: pa.Array) -> Basis:
    """Return the basis of the latest version, which follows from the shards that it covers."""
    latest = before.latest
    assert latest is not None, "shards are covered by a version"
    published = {number: table for number, table in tables.items() if number in latest.plans}
    if latest.is_partial:
        return committed_basis(published, retries, known)
    return planned_basis(published, retries)


def _affected(
    before: Before, tables: Mapping[int, pa.Table], masks: Mapping[int, pa.ChunkedArray], now: Basis, then: Basis
) -> dict[int, list[int]]:
    """Return plan file -> places of covered shards that another basis affects, or with samples that were withheld."""
    if now is then and not len(before.waiting):
        return {}
    uris = set(differing(now.versions, then.versions))
    chosen = pa.array(sorted(uris), pa.string())
    old, new = ({entry.shard.id: entry for entry in basis.retries} for basis in (then, now))
    again: dict[tuple[str, str], list[int]] = {}
    for shard in old.keys() ^ new.keys():
        for span in (old.get(shard) or new[shard]).shard.spans:
            again.setdefault((span.uri, span.etag), []).extend(range(span.start, span.stop))
    rows = {file: sorted(positions) for file, positions in again.items()}
    affected: dict[int, list[int]] = {}
    for number, table in tables.items():
        places = set(_with_uri(table, chosen))
        if places and any(version.carried is not None for version in now.versions.values()):
            is_whole = pc.is_in(table["shard"], before.whole.combine_chunks()).to_numpy()
            is_whole &= current_rows(number, table, now.versions).rows == table["rows"].to_numpy()
            places -= set(np.flatnonzero(is_whole & (table["rows"].to_numpy() > 0)).tolist())
        places.update(_with_rows(table, rows))
        places.update(pc.indices_nonzero(pc.is_in(table["shard"], before.waiting)).to_pylist())
        if found := sorted(place for place in places if masks[number][place].as_py()):
            affected[number] = found
    return affected


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
