"""Where the time of a run went: what is added up, and that nothing is counted twice."""

from __future__ import annotations

import time

import pytest

from jointdit.profiling.stopwatch import Stopwatch, step_of
from pipelines.engine.usage import TASKS, WORKERS, Usage, profile_of, shares_of


def test_the_steps_add_up_to_what_workers_and_tasks_took() -> None:
    usage = Usage(held_seconds=20, busy_seconds=12, cpus=1, starting_seconds=3)
    seconds = {"read": 2.0, "generate": 12.0, "text": 1.0, "denoise": 8.0, "decode": 2.0, "finish": 4.0, "write": 1.0}
    profile = profile_of(seconds, usage)
    assert sum(profile[name] for name in WORKERS) == 20
    assert sum(profile[name] for name in TASKS) == 6
    assert {name: value for name, value in profile.items() if value} == {
        "start": 3, "text": 1, "denoise": 8, "decode": 2, "other": 1, "idle": 5, "read": 2, "finish": 3, "write": 1,
    }  # fmt: skip
    shares = shares_of(profile)
    assert shares["denoise"] == pytest.approx(0.4)
    assert shares["finish"] == pytest.approx(0.5)


def test_a_run_without_workers_has_no_shares() -> None:
    assert set(shares_of(profile_of({}, Usage())).values()) == {0.0}


def test_a_stopwatch_adds_up_what_happens_inside_its_steps() -> None:
    stopwatch = Stopwatch("cpu")
    started = time.perf_counter()
    for _ in range(2):
        with step_of(stopwatch, "text"):
            end = time.perf_counter() + 0.01
            while time.perf_counter() < end:
                pass
    whole = time.perf_counter() - started
    with step_of(None, "text"):
        pass
    taken = stopwatch.take()
    assert 0.02 <= taken["text"] <= whole
    assert stopwatch.take() == {}
