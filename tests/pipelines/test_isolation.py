from __future__ import annotations

from pathlib import Path

import pytest

from jointdit.errors import PermanentError
from pipelines.isolation import Crashes, bisect_rows
from pipelines.ledger import Ledger, PlannedShard
from pipelines.plan import make_shard
from pipelines.read import NO_ISOLATION
from pipelines.records import Span
from pipelines.storage import Storage


@pytest.fixture
def entry() -> PlannedShard:
    spans = [Span("/in/a", "1", "a", 0, 5), Span("/in/b", "1", "b", 10, 13)]
    return PlannedShard(make_shard(spans, 0, "f"), 1, 1, 0)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path)))


def test_below_the_budget_a_shard_is_simply_tried_again(ledger: Ledger, entry: PlannedShard) -> None:
    crashes = Crashes(ledger, 3)
    assert crashes.record(entry, "generate", "died", ["a", "b"]) == 1
    assert crashes.record(entry, "generate", "died", ["b", "c"]) == 2
    assert crashes.isolation(entry) == NO_ISOLATION


def test_then_its_suspects_go_one_by_one_until_one_dies_alone_twice(ledger: Ledger, entry: PlannedShard) -> None:
    for samples in (["a", "b"], ["b", "c"], ["a", "b"]):
        Crashes(ledger, 3).record(entry, "generate", "died", samples)  # a new driver each time
    crashes = Crashes(ledger, 3)
    assert crashes.isolation(entry).suspects == {"a", "b", "c"}
    crashes.record(entry, "generate", "died", ["b"])
    assert crashes.isolation(entry).poison == frozenset()
    crashes.record(entry, "generate", "died", ["b"])
    assert Crashes(ledger, 3).isolation(entry).poison == {"b"}
    assert Crashes(ledger, 3).isolation(entry).suspects == {"a", "c"}


def test_a_batch_of_one_is_no_proof_before_isolation(ledger: Ledger, entry: PlannedShard) -> None:
    crashes = Crashes(ledger, 2)
    crashes.record(entry, "generate", "died", ["a"])
    crashes.record(entry, "generate", "died", ["a"])
    assert crashes.isolation(entry).poison == frozenset()
    assert crashes.isolation(entry).suspects == {"a"}


@pytest.mark.parametrize("poison", [[], [(0, 0)], [(0, 4), (1, 10)], [(0, n) for n in range(5)], [(1, 12)]])
def test_bisection_finds_the_rows_that_kill_their_reader(entry: PlannedShard, poison: list[tuple[int, int]]) -> None:
    tried = []

    def kills(span: int, start: int, stop: int) -> bool:
        tried.append((span, start, stop))
        return any(number == span and start <= position < stop for number, position in poison)

    assert bisect_rows(entry, kills) == poison
    assert len(tried) == len(set(tried))


def test_bisected_rows_are_kept_in_the_ledger(ledger: Ledger, entry: PlannedShard) -> None:
    crashes = Crashes(ledger, 2)
    crashes.record(entry, "read", "died")
    assert not crashes.needs_bisection(entry)
    crashes.record(entry, "read", "died")
    assert crashes.needs_bisection(entry)
    crashes.record_poison_rows(entry, [(1, 11)])
    assert not crashes.needs_bisection(entry)
    assert Crashes(ledger, 2).isolation(entry).poison_rows == {(1, 11)}


def test_a_shard_that_kills_finish_stops_the_run(ledger: Ledger, entry: PlannedShard) -> None:
    crashes = Crashes(ledger, 2)
    crashes.record(entry, "finish", "died")
    with pytest.raises(
        PermanentError, match=rf"shard {entry.shard.id} took 2 processes down, the last in finish \(died\)"
    ):
        crashes.record(entry, "finish", "died")
