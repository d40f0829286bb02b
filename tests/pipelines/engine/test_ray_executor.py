"""The executor on a real local Ray."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from pipelines.engine import ray_executor
from pipelines.engine.executor import Result, Task
from pipelines.engine.faults import unwrap
from pipelines.engine.ray_executor import RayExecutor
from pipelines.store.errors import TransientError


def double(number: int) -> int:
    if number < 0:
        raise TransientError("a negative number.")
    return 2 * number


def pair(number: int) -> tuple[int, int]:
    return number, number + 1


@pytest.fixture
def executor(ray_cluster: None) -> RayExecutor:
    return RayExecutor()


def wait_for(executor: RayExecutor, *results: Result) -> list[Result]:
    seen: list[Result] = []
    until = time.monotonic() + 60
    while not all(result.is_done for result in results):
        assert time.monotonic() < until, "a result did not arrive"
        seen += executor.wait(1.0)
    return seen


def test_results_and_errors_arrive_once(executor: RayExecutor) -> None:
    task = Task(double, 0.1)
    results = [executor.watch(executor.submit(task, 1, number)[0], number) for number in (1, 2, -1)]
    seen = wait_for(executor, *results)
    seen += executor.wait(0.05)
    assert sorted(result.owner for result in seen) == [-1, 1, 2]
    assert [result.value for result in results] == [2, 4, None]
    assert isinstance(results[2].error, RayTaskError)
    assert isinstance(unwrap(results[2].error), TransientError)


def test_a_chain_of_references_is_submitted_without_waiting(executor: RayExecutor) -> None:
    first, second = executor.submit(Task(pair, 0.1), 2, 5)
    (doubled,) = executor.submit(Task(double, 0.1), 1, second)
    result = executor.watch(doubled, None)
    wait_for(executor, result)
    assert (result.value, executor.get(first)) == (12, 5)


def test_a_part_of_a_chain_does_not_end_a_wait(executor: RayExecutor) -> None:
    (reference,) = executor.submit(Task(double, 0.1), 1, 1)
    part = executor.watch(reference, None, wakes=False)
    while not part.is_done:
        time.sleep(0.01)
    started = time.monotonic()
    assert executor.wait(0.5) == [part]
    assert time.monotonic() - started >= 0.5


def test_a_result_whose_callback_was_lost_is_found(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(executor, "_take", lambda *_: None)
    references: list[Any] = [executor.submit(Task(double, 0.1), 1, number)[0] for number in (3, -1)]
    good, bad = (executor.watch(reference, None) for reference in references)
    wait_for(executor, good, bad)
    assert good.value == 6
    assert isinstance(unwrap(bad.error), TransientError)
