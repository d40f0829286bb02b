"""Runs of carried rows say the same as a dictionary of rows, and a plan file holds them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pipelines.ledger.carried import CarriedRows, Origin, base_path, extended_path, joined, of_runs
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.plan_tables import PLAN_SCHEMA, rows_of, table_of, versions_of
from pipelines.records import Shard, Span
from pipelines.store.parquet import parquet_bytes, read_parquet

ORIGINS = [Origin("e1", 1, "a"), Origin("e2", 2, "a@2"), Origin("e2", 2, "a"), Origin("e1", 4, "a")]
Row = tuple[Origin, int]  # and its position there


def drawn(draw: random.Random) -> dict[int, Row]:
    """Draw the rows of a version: position -> where it was made. Each row is there once."""
    rows = {(o.etag, o.plan, p): (o, p) for o in ORIGINS for p in range(12)}
    chosen = draw.sample(sorted(rows.values()), draw.randint(0, 20))
    chosen = draw.choice([chosen, sorted(chosen)])
    return dict(zip(sorted(draw.sample(range(30), len(chosen))), chosen, strict=True))


def carried(rows: dict[int, Row]) -> CarriedRows:
    return of_runs("/in/a", "e9", [(at, origin, start, 1) for at, (origin, start) in rows.items()])


def rows_in(runs: CarriedRows) -> dict[int, Row]:
    columns = zip(runs.at.tolist(), runs.origin.tolist(), runs.start.tolist(), runs.rows.tolist(), strict=True)
    return {at + n: (runs.origins[o], start + n) for at, o, start, count in columns for n in range(count)}


@pytest.mark.parametrize("seed", range(40))
def test_runs_are_the_rows(seed: int) -> None:
    draw = random.Random(seed)
    rows = drawn(draw)
    runs = carried(rows)
    assert rows_in(runs) == rows
    assert runs.total == len(rows)
    for etag, plan in (("e1", 1), ("e2", 2), ("e1", 4), ("e1", None), ("e3", None), ("e2", 1)):
        mine = {p: at for at, (o, p) in rows.items() if o.etag == etag and plan in (None, o.plan)}
        if plan is None:
            positions = [p for o, p in rows.values() if o.etag == etag]
            mine = mine if len(positions) == len(set(positions)) else {}
        for position in range(13) if mine or plan is not None else ():
            assert runs.at_of(etag, position, plan) == mine.get(position)
            start, stop = sorted(draw.choices(range(14), k=2))
            assert runs.count(etag, start, stop, plan) == sum(start <= p < stop for p in mine)
        if mine or plan is not None:
            found = runs.at_of_all(etag, np.arange(13), plan).tolist()
            assert found == [mine.get(position, -1) for position in range(13)]
    places = sorted(rows)
    half = {at: rows[at] for at in places[::2]}
    assert rows_in(joined(carried(half), carried({at: rows[at] for at in places[1::2]}))) == rows
    kept = draw.sample(places, len(places) // 2)  # a later version, in another order
    later = {at: rows[place] for at, place in enumerate(kept)}
    ones = np.ones(len(kept), np.int64)
    taken = runs.taken("e10", np.arange(len(kept)), np.array(kept, np.int64), ones)
    assert (taken.etag, rows_in(taken)) == ("e10", later)


def test_appended_rows_cost_one_run() -> None:
    """However many shards planned the file, and however often it has grown."""
    rows = of_runs("/in/a", "e1", [(at, Origin("e1", 1, "a"), at, 256) for at in range(0, 2560, 256)])
    assert len(rows.at) == 1
    grown = rows.taken("e2", np.array([0]), np.array([0]), np.array([2560]))
    assert (len(grown.at), grown.total) == (1, 2560)


def test_a_plan_file_holds_what_it_carries() -> None:
    draw = random.Random(5)
    first, second = drawn(draw), {3: (ORIGINS[1], 7), 4: (ORIGINS[1], 8)}
    spans = (Span("/in/b", "e8", "b", 0, 0), Span("/in/a", "e9", "a", 0, 0))
    runs = (carried(first), of_runs("/in/b", "e8", [(at, o, p, 1) for at, (o, p) in second.items()]))
    entries = [PlannedShard(Shard("f0", spans), 2, 7, 0, carried=runs)]
    entries.append(PlannedShard(Shard("f1", (Span("/in/a", "e9", "a", 30, 33),)), 2, 7, 1))
    table = read_parquet(parquet_bytes(table_of(entries)), PLAN_SCHEMA)
    for places in (None, [0], [1], [1, 0]):
        read = {row.shard: {rows.uri: rows_in(rows) for rows in row.carried} for row in rows_of(table, places)}
        wanted = {"f0": {"/in/a": first, "/in/b": second}, "f1": {}}
        assert read == {f"f{place}": wanted[f"f{place}"] for place in places or (0, 1)}
    versions = versions_of({7: table})
    assert {uri: version[:2] for uri, version in versions.items()} == {"/in/a": ("e9", 7), "/in/b": ("e8", 7)}
    assert rows_in(versions["/in/b"].carried) == second
    older = table.drop_columns(["origins", "carried"])  # as earlier versions wrote it
    assert all(row.carried == () for row in rows_of(read_parquet(parquet_bytes(older), PLAN_SCHEMA)))


def test_an_extended_path_is_not_that_of_a_file() -> None:
    assert extended_path("days/p.txt", 12) == "days/p.txt@12"
    assert base_path("days/p.txt@12") == "days/p.txt"
    assert base_path("p@2.txt") == "p@2.txt"
