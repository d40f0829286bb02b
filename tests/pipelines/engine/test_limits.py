"""When a run is to stop, and what its time costs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from jointdit.errors import SpecError
from pipelines.engine.deadline import deadline
from pipelines.engine.limits import Limits, next_time
from pipelines.engine.usage import Usage
from pipelines.run.rounds import shards_to_make
from pipelines.spec.job import TASKS, load_spec
from pipelines.spec.running import BudgetSpec, PriceSpec

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
def test_a_text_that_is_not_a_time_in_the_future_is_one_sentence(text: str) -> None:
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
    assert not limits.is_reached(Usage()), "what was given out is made"
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

    def stopped_by(budget: BudgetSpec, now: float = 0.0, until: datetime | None = None) -> str:
        limits = Limits(budget, price, until, clock=lambda: now)
        assert limits.is_reached(an_hour) == bool(limits.stopped)
        return limits.stopped

    assert stopped_by(BudgetSpec()) == ""
    assert stopped_by(BudgetSpec(max_gpu_hours=1.1, max_cost=3.1)) == ""
    assert stopped_by(BudgetSpec(max_gpu_hours=1.0)) == "budget.max_gpu_hours 1 is spent"
    assert stopped_by(BudgetSpec(max_cost=3.0)) == "budget.max_cost 3 EUR is spent"
    until = datetime(2026, 11, 26, 6)
    assert stopped_by(BudgetSpec(), until.timestamp() - 1, until) == ""
    assert stopped_by(BudgetSpec(), until.timestamp(), until) == "it is 06:00"


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


def number_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers of a spec, with the field or the part of a type that bounds them."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        kinds = [annotation, *get_args(annotation)]
        if any(kind in (int, float) for kind in kinds):
            yield f"{prefix}{name}", field
        for kind in [*kinds, *(inner for each in kinds for inner in get_args(each))]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from number_fields(kind, f"{prefix}{name}.")


def test_every_number_of_a_spec_has_two_bounds() -> None:
    """A new field without them fails here; 1e300 seconds, rows or metres make something overflow, or never end."""
    base = {"task": "joint", "input": {"uri": "in"}, "output": {"uri": "out"}}
    maps = {"depth": {"kind": "metric"}}
    seen = 0
    for task, model in TASKS.items():
        spec: dict[str, Any] = {**base, "task": task, **({"teachers": "t"} if task == "prepare" else {})}
        if task in ("depth-to-image", "encode"):
            spec["input"] = {**spec["input"], **maps}
        for path, field in number_fields(model):
            if path.startswith("input.depth.") and "depth" not in spec["input"]:
                continue
            values = [2**62, -(2**62)] if int in (field.annotation, *get_args(field.annotation)) else [1e300, -1e300]
            for value in values:
                if (path, value) == ("seed", 2**62):
                    continue  # any 63 bits are a seed
                with pytest.raises(SpecError, match=r"must be|width belong together"):
                    load_spec(spec, [f"{path}={value}", *EXTRA.get(path.rpartition(".")[0], ())])
                seen += 1
    assert seen > 200


EXTRA = {"quality.keep_best": ("quality.keep_best.by=depth_span", "quality.keep_best.order=highest")}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "resources.workers=1000000000",
            "resources.workers must be auto or a whole number of at least 1 and at most 10,",
        ),
        ("resources.stall_seconds=1e10", "resources.stall_seconds must be at most 1000000000.0, found 10000000000."),
        ("resources.stall_seconds=1e-9", "resources.stall_seconds must be at least 0.001"),
        ("resources.gpus_per_worker=1e-9", "resources.gpus_per_worker must be at least 0.01"),
        ("output.points.z_near=1e-300", "output.points.z_near must be at least 1e-06"),
        ("output.points.z_far=1e300", "output.points.z_far must be at most 1000000000.0"),
        ("output.points.voxel=1e-300", "output.points.voxel must be at least 1e-06"),
        ("retries.infrastructure=1000000000000", "retries.infrastructure must be at most 1000000000"),
    ],
)
def test_a_number_that_would_hang_or_overflow_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec({"task": "joint", "input": {"uri": "in"}, "output": {"uri": "out"}}, [override])
    assert str(caught.value).startswith(sentence)


def test_the_longest_times_that_a_spec_takes_are_taken_by_the_timers() -> None:
    spec = load_spec(
        {"task": "joint", "input": {"uri": "in"}, "output": {"uri": "out"}}, ["resources.stall_seconds=1e9"]
    )
    with deadline(spec.resources.stall_seconds, "nothing"):
        pass
