"""Some random histories, all of which must be sound; and that a seed repeats, and a fault is found and made small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.minimize import smallest
from tests.chaos.plots import Plot, draw_plot
from tests.chaos.steps import Death

ROOT = Path(__file__).parents[2]


def run_histories(*arguments: str, code: int = 0) -> str:
    """What the program says; it forks, so it has a process of its own."""
    command = [sys.executable, "-m", "tests.chaos.histories", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_or_revised_in_some_histories() -> None:
    assert ": 0 failed." in run_histories("--seed", "1", "--count", "30")


def test_a_seed_gives_the_same_history_again() -> None:
    """Operations at once, kills and failing calls included: the whole story is the same, to the number of steps."""
    plot = draw_plot(7, 6)
    assert any(operation.parts for operation in plot.operations)
    assert any(each.death or each.failure for operation in plot.operations for each in (operation, *operation.parts))
    first, second = (run_histories("--seed", "7", "--first", "6", "--count", "1") for _ in range(2))
    assert first.count("steps)") > len(plot.operations)
    assert re.sub(r" in \d+ s", "", first) == re.sub(r" in \d+ s", "", second)


def test_a_planted_fault_is_found_and_made_small() -> None:
    told = run_histories("--seed", "3", "--count", "20", "--until-failure", "--mutant", "lose-a-sample", code=1)
    assert "lost: version" in told
    assert "--count 1 --mutant lose-a-sample" in told
    story = told.partition("as short as it was made:")[2].partition("again:")[0]
    assert len(re.findall(r"^  \S", story, re.MULTILINE)) <= 2, f"one or two operations are enough:\n{story}"


def test_operations_that_a_failure_does_not_need_are_left_out() -> None:
    """And parts of operations at once, kills and settings: what is left is what the failure needs, in its order."""

    def fails(plot: Plot) -> bool:
        """A run that dies after a gc that runs beside something."""
        gc = [n for n, each in enumerate(plot.operations) if "gc" in [p.kind for p in each.parts]]
        deaths = [n for n, each in enumerate(plot.operations) if each.kind == "run" and each.death]
        return bool(gc and deaths and gc[0] < deaths[-1])

    plot = next(plot for plot in (draw_plot(1, number) for number in range(100)) if fails(plot))
    first, last = smallest(plot, fails).operations
    assert [part.kind for part in first.parts if part.kind == "gc"] == ["gc"]
    assert len(first.parts) == 2
    assert last.kind == "run"
    assert isinstance(last.death, Death)
    assert not last.settings
