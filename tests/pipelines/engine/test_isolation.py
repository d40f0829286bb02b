from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from jointdit.errors import PermanentError
from pipelines.engine.isolation import Bisection, Crashes
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.spec.job import RetriesSpec
from pipelines.stages.read import NO_ISOLATION
from pipelines.store.storage import Storage


@pytest.fixture
def entry() -> PlannedShard:
    spans = [Span("/in/a", "1", "a", 0, 5), Span("/in/b", "1", "b", 10, 13)]
    return PlannedShard(make_shard(spans, 0, "f"), 1, 1, 0)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path)))


def test_below_the_budget_a_shard_is_retried_as_a_whole(ledger: Ledger, entry: PlannedShard) -> None:
    crashes = Crashes(ledger, RetriesSpec(crash=3))
    assert crashes.record(entry, "generate", "died", ["a", "b"]) == 1
    assert crashes.record(entry, "generate", "died", ["b", "c"]) == 2
    assert crashes.isolation(entry) == NO_ISOLATION


def test_suspects_are_generated_one_by_one_until_one_dies_alone_twice(ledger: Ledger, entry: PlannedShard) -> None:
    for samples in (["a", "b"], ["b", "c"], ["a", "b"]):
        Crashes(ledger, RetriesSpec(crash=3)).record(entry, "generate", "died", samples)  # a new driver each time
    crashes = Crashes(ledger, RetriesSpec(crash=3))
    assert crashes.isolation(entry).suspects == {"a", "b", "c"}
    crashes.record(entry, "generate", "died", ["b"])
    assert crashes.isolation(entry).poison == frozenset()
    crashes.record(entry, "generate", "died", ["b"])
    assert Crashes(ledger, RetriesSpec(crash=3)).isolation(entry).poison == {"b"}
    assert Crashes(ledger, RetriesSpec(crash=3)).isolation(entry).suspects == {"a", "c"}


def test_a_batch_of_one_is_no_proof_before_isolation(ledger: Ledger, entry: PlannedShard) -> None:
    crashes = Crashes(ledger, RetriesSpec(crash=2))
    crashes.record(entry, "generate", "died", ["a"])
    crashes.record(entry, "generate", "died", ["a"])
    assert crashes.isolation(entry).poison == frozenset()
    assert crashes.isolation(entry).suspects == {"a"}


def bisect(bisection: Bisection, kills) -> list[tuple[int, int]]:
    while (current := bisection.current) is not None:
        bisection.record(kills(*current))
    return bisection.killers


@pytest.mark.parametrize("poison", [[], [(0, 0)], [(0, 4), (1, 10)], [(0, n) for n in range(5)], [(1, 12)]])
def test_bisection_finds_the_rows_that_kill_their_reader(entry: PlannedShard, poison: list[tuple[int, int]]) -> None:
    tried: Counter[tuple[int, int, int]] = Counter()

    def kills(span: int, start: int, stop: int) -> bool:
        tried[span, start, stop] += 1
        return any(number == span and start <= position < stop for number, position in poison)

    spans = [(number, span.start, span.stop) for number, span in enumerate(entry.shard.spans)]
    assert bisect(Bisection(spans), kills) == poison
    twice = {(number, position, position + 1) for number, position in poison}
    assert {each for each, count in tried.items() if count == 2} == twice
    assert max(tried.values(), default=0) <= 2


def test_a_row_whose_reader_died_once_is_not_blamed() -> None:
    deaths = iter([True, True, False])  # the whole, the first row alone, and the same row again
    assert bisect(Bisection([(0, 0, 2)]), lambda *tried: next(deaths, False)) == []


def test_the_result_of_a_bisection_is_kept_in_the_ledger(ledger: Ledger, entry: PlannedShard) -> None:
    crashes = Crashes(ledger, RetriesSpec(crash=2))
    for stage, found in (("read", {"rows": [(1, 11)]}), ("finish", {"samples": ["a:3/0"]})):
        crashes.record(entry, stage, "died")
        assert not crashes.needs_bisection(entry, stage)
        crashes.record(entry, stage, "died")
        assert crashes.needs_bisection(entry, stage)
        crashes.record_bisection(entry, stage, **found)
        assert not crashes.needs_bisection(entry, stage)
    isolation = Crashes(ledger, RetriesSpec(crash=2)).isolation(entry)
    assert (isolation.poison_rows, isolation.unfinishable) == ({(1, 11)}, {"a:3/0"})
    assert not isolation.suspects


def test_a_shard_that_keeps_killing_although_no_row_does_stops_the_run(ledger: Ledger, entry: PlannedShard) -> None:
    crashes = Crashes(ledger, RetriesSpec(crash=2))
    crashes.record(entry, "finish", "died")
    crashes.record(entry, "finish", "died")
    crashes.record_bisection(entry, "finish")
    crashes.record(entry, "finish", "died")
    with pytest.raises(
        PermanentError,
        match=rf"shard {entry.shard.id} killed 4 processes, the last in finish \(died\), but no single",
    ):
        crashes.record(entry, "finish", "died")


def test_a_record_that_was_written_twice_counts_once(ledger: Ledger, entry: PlannedShard) -> None:
    Crashes(ledger, RetriesSpec(crash=3)).record(entry, "generate", "died", ["a"])
    (record,) = ledger.crashes(entry.shard.id)
    ledger.record_crash(entry.shard.id, record)  # as after a write whose answer was lost
    assert len(ledger.crashes(entry.shard.id)) == 2
    assert Crashes(ledger, RetriesSpec(crash=3)).record(entry, "generate", "died", ["a"]) == 2
