"""The phases of an attempt, without Ray."""

from __future__ import annotations

import pytest

from pipelines.engine.attempts import Attempt, Phase, Search
from pipelines.engine.executor import Result
from pipelines.engine.isolation import Bisection
from pipelines.ledger.entries import PlannedShard
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.stages.read import NO_ISOLATION

READ, FIRST, SECOND, RECEIPT, AGAIN = (Result(name, None) for name in ("read", "first", "second", "receipt", "again"))


@pytest.fixture
def attempt() -> Attempt:
    entry = PlannedShard(make_shard([Span("/in/a", "1", "a", 0, 4)], 0, "f"), 1, 1, 0)
    return Attempt(entry, NO_ISOLATION, READ, "ids", "rows", ["part 0", "part 1"], moved=1.0)


def test_a_chain_that_is_submitted_step_by_step_awaits_its_last_step(attempt: Attempt) -> None:
    assert (attempt.phase, attempt.awaited) == (Phase.STEPWISE, READ)
    attempt.add_part("output 0", FIRST)
    assert (attempt.phase, attempt.awaited) == (Phase.STEPWISE, FIRST)
    attempt.add_part("output 1", SECOND)
    assert not attempt.has_results, "its worker is needed until finish is submitted"
    attempt.submit(RECEIPT, now=2.0)
    assert (attempt.phase, attempt.awaited, attempt.moved) == (Phase.SUBMITTED, RECEIPT, 2.0)


def test_a_finish_that_waits_awaits_a_time(attempt: Attempt) -> None:
    attempt.submit(RECEIPT, now=2.0)
    assert not attempt.waits_for_time
    attempt.wait_to_finish(due=12.0)
    assert (attempt.phase, attempt.awaited, attempt.due) == (Phase.WAITING_TO_FINISH, None, 12.0)
    assert attempt.waits_for_time
    attempt.submit(AGAIN, now=13.0)
    assert (attempt.phase, attempt.awaited) == (Phase.SUBMITTED, AGAIN)


def test_a_search_awaits_one_try_after_the_other(attempt: Attempt) -> None:
    attempt.submit(RECEIPT, now=2.0)
    attempt.begin_search(Search("read", Bisection([(0, 0, 4)])))
    assert (attempt.phase, attempt.awaited, attempt.due) == (Phase.SEARCHING, None, 0.0)
    assert not attempt.has_results, "nothing was generated of a shard that cannot be read"
    attempt.add_try(AGAIN, now=3.0)
    assert (attempt.awaited, attempt.moved) == (AGAIN, 3.0)
    attempt.end_try(due=3.0)
    assert (attempt.phase, attempt.awaited, attempt.due) == (Phase.SEARCHING, None, 3.0)


def test_a_superseded_attempt_stays_while_its_chain_runs(attempt: Attempt) -> None:
    attempt.submit(RECEIPT, now=2.0)
    assert not attempt.is_superseded
    attempt.supersede()
    assert attempt.is_superseded
    assert attempt.awaited == RECEIPT


def test_progress_is_noted_once_and_generated_parts_are_released(attempt: Attempt) -> None:
    results = [Result(None, attempt) for _ in range(3)]
    attempt.read = results[0]
    attempt.add_part("output 0", results[1])
    attempt.add_part("output 1", results[2])
    assert not attempt.note_progress(5.0)
    results[0].set("summary")
    assert attempt.note_progress(6.0)
    assert not attempt.note_progress(7.0)
    results[1].set("generated")
    assert attempt.note_progress(8.0)
    assert (attempt.has_input, attempt.done, attempt.moved) == (True, 1, 8.0)
    assert attempt.parts == [None, "part 1"]
    results[2].set(None, RuntimeError("lost"))
    assert attempt.note_progress(9.0)
    assert attempt.is_generated
    assert not attempt.has_results
    assert attempt.parts == [None, "part 1"], "what failed can be looked at"
