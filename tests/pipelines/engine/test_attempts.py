"""The phases of an attempt, without Ray: strings stand for references."""

from __future__ import annotations

import pytest

from pipelines.engine.attempts import Attempt, Phase, Search
from pipelines.engine.isolation import Bisection
from pipelines.ledger.entries import PlannedShard
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.stages.read import NO_ISOLATION


@pytest.fixture
def attempt() -> Attempt:
    entry = PlannedShard(make_shard([Span("/in/a", "1", "a", 0, 4)], 0, "f"), 1, 1, 0)
    return Attempt(entry, NO_ISOLATION, "read", "rows", ["part 0", "part 1"])


def test_a_chain_that_is_submitted_step_by_step_awaits_its_last_step(attempt: Attempt) -> None:
    assert (attempt.phase, attempt.awaited) == (Phase.STEPWISE, "read")
    attempt.add_part("output 0", "summary 0")
    assert (attempt.phase, attempt.awaited) == (Phase.STEPWISE, "summary 0")
    attempt.add_part("output 1", "summary 1")
    assert not attempt.has_results, "its worker is needed until finish is submitted"
    attempt.submit("receipt")
    assert (attempt.phase, attempt.awaited) == (Phase.SUBMITTED, "receipt")


def test_a_finish_that_waits_awaits_a_time(attempt: Attempt) -> None:
    attempt.submit("receipt")
    attempt.wait_to_finish(due=12.0)
    assert (attempt.phase, attempt.awaited, attempt.due) == (Phase.WAITING_TO_FINISH, None, 12.0)
    attempt.submit("second receipt")
    assert (attempt.phase, attempt.awaited) == (Phase.SUBMITTED, "second receipt")


def test_a_search_awaits_one_try_after_the_other(attempt: Attempt) -> None:
    attempt.submit("receipt")
    attempt.begin_search(Search("read", Bisection([(0, 0, 4)])))
    assert (attempt.phase, attempt.awaited, attempt.due) == (Phase.SEARCHING, None, 0.0)
    assert not attempt.has_results, "nothing was generated of a shard that cannot be read"
    attempt.add_try("first try")
    assert attempt.awaited == "first try"
    attempt.end_try(due=3.0)
    assert (attempt.phase, attempt.awaited, attempt.due) == (Phase.SEARCHING, None, 3.0)


def test_a_superseded_attempt_stays_while_its_chain_runs(attempt: Attempt) -> None:
    attempt.submit("receipt")
    assert not attempt.is_superseded
    attempt.supersede()
    assert attempt.is_superseded
    assert attempt.awaited == "receipt"
