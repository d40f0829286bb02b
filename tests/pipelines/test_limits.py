"""When a run is to stop, and what its time costs."""

from __future__ import annotations

from datetime import datetime

import pytest

from jointdit.errors import SpecError
from pipelines.limits import Limits, next_time
from pipelines.run import shards_to_make
from pipelines.spec import load_spec
from pipelines.spec_sections import BudgetSpec, PriceSpec
from pipelines.usage import Usage

EVENING = datetime(2026, 11, 25, 22, 30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("06:00", datetime(2026, 11, 26, 6)),
        ("22:31", datetime(2026, 11, 25, 22, 31)),
        ("22:30", datetime(2026, 11, 26, 22, 30)),
        ("2026-11-27T06:00", datetime(2026, 11, 27, 6)),
    ],
)
def test_a_time_is_the_next_one(text: str, expected: datetime) -> None:
    assert next_time(text, EVENING) == expected


@pytest.mark.parametrize("text", ["six", "25:00", "06:60", "2026-11-25T06:00", ""])
def test_what_is_no_time_to_come_is_one_sentence(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--until"):
        next_time(text, EVENING)


def test_rows_are_given_out_in_whole_shards_until_the_budget_is_reached(make_job) -> None:
    job = make_job([f"prompt {n}" for n in range(10)])
    job.plan()
    pending = shards_to_make(job.ledger)
    assert [entry.shard.rows for entry in pending] == [4, 4, 2]
    limits = Limits(BudgetSpec(max_rows=5))
    assert limits.choose(pending) == pending[:2]
    assert limits.stopped == "budget.max_rows 5 is reached"
    assert not limits.look(Usage()), "what was given out is made"
    assert limits.choose(pending[2:]) == []
    exactly = Limits(BudgetSpec(max_rows=10))
    assert exactly.choose(pending) == pending
    assert exactly.stopped == ""


def test_a_run_stops_at_its_time_and_when_its_budget_is_spent() -> None:
    an_hour = Usage(held_seconds=7200, busy_seconds=5400, gpus=0.5, cpus=1.0)
    assert (an_hour.gpu_hours, an_hour.cpu_hours, an_hour.busy_share) == (1.0, 2.0, 0.75)
    price = PriceSpec(gpu_hour=3.0, cpu_hour=0.1, currency="EUR")
    assert an_hour.cost(price) == 3.0
    assert Usage(held_seconds=7200, cpus=1.5).cost(price) == pytest.approx(0.3), "without GPUs the CPUs cost"
    assert (an_hour + an_hour).gpu_hours == 2.0

    def look(budget: BudgetSpec, now: float = 0.0, until: datetime | None = None) -> str:
        limits = Limits(budget, price, until, clock=lambda: now)
        assert limits.look(an_hour) == bool(limits.stopped)
        return limits.stopped

    assert look(BudgetSpec()) == ""
    assert look(BudgetSpec(max_gpu_hours=1.1, max_cost=3.1)) == ""
    assert look(BudgetSpec(max_gpu_hours=1.0)) == "budget.max_gpu_hours 1 is spent"
    assert look(BudgetSpec(max_cost=3.0)) == "budget.max_cost 3 EUR is spent"
    until = datetime(2026, 11, 26, 6)
    assert look(BudgetSpec(), until.timestamp() - 1, until) == ""
    assert look(BudgetSpec(), until.timestamp(), until) == "it is 06:00"


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"budget": {"max_cost": 5.0}}, r"budget.max_cost needs a price: give price.gpu_hour"),
        ({"budget": {"max_rows": 0}}, r"budget.max_rows must be at least 1, found 0"),
        ({"price": {"gpu_hour": -1.0}}, r"price.gpu_hour must be at least 0"),
        ({"notify": {"webhook": "hooks.example.org"}}, r"notify.webhook must be an http:// or https:// address"),
        ({"output": {"uri": "out", "retain_versions": 1}}, r"output.retain_versions must be at least 2, found 1"),
    ],
)
def test_a_limit_that_makes_no_sense_is_one_sentence(section: dict, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        load_spec({"task": "joint", "input": {"uri": "prompts.txt"}, "output": {"uri": "out"}, **section})
