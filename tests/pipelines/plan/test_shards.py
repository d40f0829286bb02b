"""Shards of single rows: adjacent rows are one span, and plans with a span a row stay valid."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ledger.counting import identities
from pipelines.ledger.entries import PlannedShard
from pipelines.plan.shards import id_of, make_shard, shards_of_rows
from pipelines.records import Span


def row(uri: str, position: int, etag: str = "1") -> Span:
    return Span(uri, etag, uri.rpartition("/")[2], position, position + 1)


def test_ten_thousand_adjacent_rows_are_one_span_a_shard() -> None:
    rows = [row("/in/a", position) for position in range(10_000)]
    shards = shards_of_rows({(1, (2, 3)): rows}, 5, 256, "f", 2)
    assert [len(entry.shard.spans) for entry in shards] == [1] * 40
    assert [entry.shard.rows for entry in shards] == [256] * 39 + [16]
    assert [entry.shard.spans[0].start for entry in shards] == list(range(0, 10_000, 256))


def test_rows_of_other_files_and_versions_are_other_spans() -> None:
    rows = [row("/in/a", 0), row("/in/b", 1), row("/in/a", 1), row("/in/a", 3), row("/in/b", 2), row("/in/b", 3, "2")]
    (entry,) = shards_of_rows({(1, (1,)): rows}, 1, 10, "f", 1)
    spans = [(span.uri, span.etag, span.start, span.stop) for span in entry.shard.spans]
    assert spans == [("/in/a", "1", 0, 2), ("/in/a", "1", 3, 4), ("/in/b", "1", 1, 3), ("/in/b", "2", 3, 4)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), unique=True, min_size=1),
    st.integers(1, 8),
    st.integers(0, 2),
)
def test_every_row_is_planned_once_under_an_id_that_says_what_it_holds(
    places: list[tuple[str, int]], shard_rows: int, retry: int
) -> None:
    rows = [row(f"/in/{name}", position) for name, position in places]
    shards = shards_of_rows({(1, (4, 6)): rows}, 3, shard_rows, "f", 4, retry)
    planned = [identity for entry in shards for identity in identities(entry)]
    assert sorted(planned) == sorted((span.uri, "1", span.start, index) for span in rows for index in (4, 6))
    assert all(entry.shard.rows <= shard_rows for entry in shards)
    assert [entry.shard.id for entry in shards] == [id_of(entry, "f", 4) for entry in shards]
    for entry in shards:
        assert not any(a.file == b.file and a.stop == b.start for a, b in pairwise(entry.shard.spans))


def test_plans_with_a_span_for_each_of_adjacent_rows_keep_their_ids() -> None:
    spans = [row("/in/a", position) for position in range(3)]
    entry = PlannedShard(make_shard(spans, 1, "f", 2), 2, 2, 0, (2, 3))
    assert entry.shard.id == "8649d3f07c3dd8b7d057"
    assert id_of(entry, "f", 2) == entry.shard.id
    merged = replace(entry.shard, spans=(Span("/in/a", "1", "a", 0, 3),))
    assert id_of(replace(entry, shard=merged), "f", 2) != entry.shard.id
