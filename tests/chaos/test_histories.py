"""Random histories have no problems, a seed repeats, and a planted fault is found and minimized."""

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
    """Run the program in a new process, because it forks; return its output."""
    command = [sys.executable, "-m", "tests.chaos.histories", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.timeout(600)
def test_random_histories_have_no_problems() -> None:
    assert ": 0 failed." in run_histories("--seed", "1", "--count", "15")


@pytest.mark.slow
def test_a_seed_gives_the_same_history() -> None:
    """The whole story is the same, with concurrent operations, kills, failing calls and numbers of steps."""
    plot = draw_plot(7, 6)
    assert any(operation.parts for operation in plot.operations)
    assert any(part.death or part.failure for operation in plot.operations for part in (operation, *operation.parts))
    first, second = (run_histories("--seed", "7", "--first", "6", "--count", "1") for _ in range(2))
    assert first.count("steps)") > len(plot.operations)
    assert re.sub(r" in \d+ s", "", first) == re.sub(r" in \d+ s", "", second)


def test_a_planted_fault_is_found_and_minimized() -> None:
    output = run_histories("--seed", "3", "--count", "20", "--until-failure", "--mutant", "lose-a-sample", code=1)
    assert "lost: version" in output
    assert "--count 1 --mutant lose-a-sample" in output
    story = output.partition("minimized history:")[2].partition("repeat:")[0]
    assert len(re.findall(r"^  \S", story, re.MULTILINE)) <= 2, f"one or two operations suffice:\n{story}"


def test_minimizing_leaves_out_what_a_failure_does_not_need() -> None:
    """Operations, their parts, kills and settings are left out; the rest keeps its order."""

    def fails(plot: Plot) -> bool:
        """Return whether a run dies after a gc that is concurrent with another operation."""
        gc = [n for n, operation in enumerate(plot.operations) if "gc" in [part.kind for part in operation.parts]]
        deaths = [n for n, operation in enumerate(plot.operations) if operation.kind == "run" and operation.death]
        return bool(gc and deaths and gc[0] < deaths[-1])

    plot = next(plot for plot in (draw_plot(1, number) for number in range(100)) if fails(plot))
    first, last = smallest(plot, fails).operations
    assert [part.kind for part in first.parts if part.kind == "gc"] == ["gc"]
    assert len(first.parts) == 2
    assert last.kind == "run"
    assert isinstance(last.death, Death)
    assert not last.settings
