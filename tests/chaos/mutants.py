"""Faults planted into the engine, each under a name: with one of them in place the machine must find it.

A mutant is a function without arguments that changes modules of the engine in this process, and so in its forks.
`python -m tests.chaos.histories --mutant NAME` plays histories with it. An entry switches a mend off or undoes a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pipelines.counting
import pipelines.publish


def lose_a_sample() -> None:
    """Publishing leaves the last sample out, where there are more than two."""
    counted = pipelines.counting.Counting.counted

    def without_last(self: Any, *given: Any, **named: Any) -> Any:
        samples = list(counted(self, *given, **named))
        return iter(samples[:-1] if len(samples) > 2 else samples)

    pipelines.counting.Counting.counted = without_last  # type: ignore[method-assign]


def forget_decisions() -> None:
    """Decisions of the version before do not stand."""
    pipelines.publish.verdicts = lambda *_: {}


MUTANTS: dict[str, Callable[[], None]] = {"lose-a-sample": lose_a_sample, "forget-decisions": forget_decisions}
