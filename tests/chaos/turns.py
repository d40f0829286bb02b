"""The schedule of concurrent processes, drawn from a seed, with switches at critical steps.

A process takes some steps in a row. Before a create-only write, on which all decisions of the engine rest, it often
waits until the others have passed some turning points or have ended. So others read, publish, prune and delete between
a process's reads and its write.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

STEP, TURNING, CREATE = b".", b"!", b"+"  # kinds of the next step; a create-only write is a turning point too
BURSTS = (1, 10, 100, 1000)  # average number of steps in a row
SWITCHED, HELD = 0.15, 0.7  # probability of a switch at a turning point, and of a wait before a create-only write
MAX_POINTS = 6  # turning points of others that a held process waits for, or their ends


class Process(Protocol):
    """A process that takes steps; `next_step` is None when it has ended."""

    next_step: bytes | None

    def go_on(self) -> None:
        """Take a step."""


SomeProcess = TypeVar("SomeProcess", bound=Process)


def take_turns(processes: Sequence[SomeProcess], draw: random.Random) -> Iterator[SomeProcess]:
    """Let processes take steps until all have ended; yield the process after each sequence of steps."""
    held: dict[int, int] = {}  # process -> turning points of others left to wait for
    due: SomeProcess | None = None
    last: SomeProcess | None = None
    while alive := [process for process in processes if process.next_step is not None]:
        free = [process for process in alive if id(process) not in held] or alive
        chosen = due or draw.choice([process for process in free if process is not last] or free)
        held.pop(id(chosen), None)
        due = None
        for _ in range(1 + int(draw.expovariate(1 / draw.choice(BURSTS)))):
            chosen.go_on()
            if chosen.next_step in (None, STEP):
                if chosen.next_step is None:
                    break
                continue
            for process in alive:
                if id(process) in held:
                    held[id(process)] -= 1
                    if not held[id(process)]:
                        due = process
            if chosen.next_step == CREATE and draw.random() < HELD:
                held[id(chosen)] = draw.randint(1, MAX_POINTS) if draw.random() < 0.6 else -1
                break
            if due or draw.random() < SWITCHED:
                break
        last = chosen
        yield chosen
