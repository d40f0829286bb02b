"""Decisions by columns of scores, compared with decisions sample by sample."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointdit.errors import PermanentError
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.scored import Lacking, by_filters
from pipelines.quality import Filter, NearDuplicate, decide, load_filters
from pipelines.store.shelf import Shelf, chunks_of

FILTERS: list[Filter] = [
    *load_filters(
        [
            {"kind": "depth_range", "min_span": 0.5},
            {"kind": "planarity"},
            {"kind": "blank_picture", "min_span": 0.5},
            {"kind": "caption", "banned": ["b"]},
            {"kind": "near_duplicate"},
        ]
    )
]
SCORE = st.sampled_from([None, float("nan"), 0.0, 0.25, 0.5, 1.0, float("inf")])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FILTERS), max_size=3), st.data())
def test_filters_say_the_same_of_columns_as_of_each_sample(filters: list[Filter], data: st.DataObject) -> None:
    names = Criteria(tuple(filters)).scores
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, SCORE)), min_size=1, max_size=8))
    made = data.draw(st.lists(st.sampled_from(["kept", "rejected", "quarantined"]), min_size=len(rows)))[: len(rows)]
    captions = data.draw(st.lists(st.sampled_from(["a", "b", None]), min_size=len(rows)))[: len(rows)]
    samples = pa.table({"made": made, "made_reasons": pa.array([None] * len(rows), pa.list_(pa.string()))})
    columns = {f"quality.{name}": pa.array([row[name] for row in rows], pa.float64()) for name in names}
    facts = pa.table({**columns, "prompt": pa.array(captions, pa.string())})
    outcomes, reasons = by_filters(samples, facts, filters)
    for n, row in enumerate(rows):
        expected = [] if made[n] == "quarantined" else decide(filters, row, captions[n])
        assert (reasons[n].as_py() or []) == expected
        assert outcomes[n].as_py() == (
            "quarantined" if made[n] == "quarantined" else "rejected" if expected else "kept"
        )


def lacking(spans: list[float | None], hashes: list[str | None], reasons: list[list[str] | None]) -> Lacking:
    """Look at two shards of two samples, the later one first."""
    found = Lacking(Criteria((FILTERS[0], NearDuplicate())))
    for place in (1, 0):
        part = slice(2 * place, 2 * place + 2)
        samples = pa.table(
            {
                "shard": [f"s{place}"] * 2,
                "plan": [1, 1],
                "place": [place, place],
                "id": [f"{place}:{n}/0" for n in range(2)],
                "made": ["kept", "kept"],
                "made_reasons": pa.array(reasons[part], pa.list_(pa.string())),
            }
        )
        facts = pa.table(
            {
                "quality.depth_span": pa.array(spans[part], pa.float64()),
                "phash": pa.array(hashes[part], pa.string()),
            }
        )
        found.look_at(samples, facts)
    return found


def test_what_is_lacking_first_in_the_plan_is_named() -> None:
    none: list[list[str] | None] = [None] * 4
    lacking([0.1, None, 0.1, 0.1], ["0"] * 4, none).refuse("out")  # one sample alone could not be scored
    tried: list[list[str] | None] = [["depth_range: depth_span was not computed"], None, None, None]
    lacking([None, None, 0.1, 0.1], ["0"] * 4, tried).refuse("out")
    with pytest.raises(PermanentError, match="out: 4 samples lack the score depth_span, such as 0:0/0, because"):
        lacking([None] * 4, ["0", "0", "0", None], none).refuse("out")
    with pytest.raises(PermanentError, match="1 sample lacks the perceptual hash, such as 1:1/0"):
        lacking([0.1, 0.1, None, None], ["0", "0", "0", None], none).refuse("out")


def test_a_shelf_returns_what_it_was_given_to_several_readers() -> None:
    with Shelf[int]() as shelf:
        for chunk in chunks_of(range(10), 4):
            shelf.add(chunk)
        assert list(zip(shelf, shelf, strict=True)) == [(n, n) for n in range(10)]
