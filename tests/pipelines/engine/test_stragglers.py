from __future__ import annotations

import pytest

from pipelines.engine.attempts import Attempt, Queue
from pipelines.engine.executor import Result
from pipelines.engine.oversight import Pace
from pipelines.ledger.entries import PlannedShard
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.spec.job import ResourcesSpec
from pipelines.stages.read import NO_ISOLATION

NOW = 5000.0


def attempt(age: float | None, rows: int = 4) -> Attempt:
    """One whose clock has been running for so many seconds."""
    entry = PlannedShard(make_shard([Span("/in/a", "1", "a", 0, rows)], 0, "f"), 1, 1, 0)
    began = None if age is None else NOW - age
    return Attempt(entry, NO_ISOLATION, Result(None, None), None, None, [], moved=NOW, began=began)


@pytest.fixture
def pace() -> Pace:
    pace = Pace(ResourcesSpec(straggler_factor=3.0, straggler_seconds=0.0))
    for age in (9.0, 10.0, 500.0):
        pace.committed(attempt(age), NOW)
    return pace


def test_a_shard_far_beyond_the_median_is_late(pace: Pace) -> None:
    assert not pace.is_late(attempt(25.0), NOW)
    assert pace.is_late(attempt(35.0), NOW)
    assert not pace.is_late(attempt(None), NOW), "it waits for its turn"


def test_a_large_shard_may_take_longer(pace: Pace) -> None:
    assert not pace.is_late(attempt(35.0, rows=40), NOW)
    assert pace.is_late(attempt(350.0, rows=40), NOW)
    assert pace.is_late(attempt(10.0, rows=1), NOW)


def test_two_shards_have_no_median() -> None:
    pace = Pace(ResourcesSpec(straggler_factor=3.0, straggler_seconds=0.0))
    pace.committed(attempt(1.0), NOW)
    pace.committed(attempt(1.0), NOW)
    assert not pace.is_late(attempt(1000.0), NOW)


def test_the_check_can_be_disabled_and_waits_for_its_seconds() -> None:
    for resources, late in (
        (ResourcesSpec(straggler_factor=None), False),
        (ResourcesSpec(), True),
        (ResourcesSpec(straggler_seconds=2000.0), False),
    ):
        pace = Pace(resources)
        for _ in range(3):
            pace.committed(attempt(1.0), NOW)
        assert pace.is_late(attempt(1000.0), NOW) is late


def test_the_clock_of_a_shard_starts_when_its_worker_comes_to_it() -> None:
    first, second, third = (attempt(None) for _ in range(3))
    for each in (first, second, third):
        each.parts = ["part", "part"]
    queue = Queue(None, [first, second, third])
    assert not queue.mark_begun(NOW)
    assert [each.began is not None for each in queue.attempts] == [True, False, False]
    first.done = 2
    assert not queue.mark_begun(NOW)
    assert [each.began is not None for each in queue.attempts] == [True, True, False]
    second.done = third.done = 2
    assert queue.mark_begun(NOW)
    assert first.began <= second.began <= third.began
