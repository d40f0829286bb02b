"""Whose turn it is among processes that run at once: drawn from a seed, with an eye for the moments that matter.

A process goes on for some steps. Before a create-only write, which is how the engine decides everything, it is often
held until the others have passed some turning points, or have ended: so others read, publish, prune and delete between
what a process has read and what it makes of that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

STEP, TURNING, CREATE = b".", b"!", b"+"  # what a process is about to do; a create-only write is a turning point too
BURSTS = (1, 10, 100, 1000)  # steps that a process goes on for, on average
SWITCHED, HELD = 0.15, 0.7  # how often another process goes on at a turning point, and a create-only write waits
MOST_POINTS = 6  # turning points that a held one waits for; or it waits for the others' ends


class Process(Protocol):
    """Something that takes steps; `next_step` is None when it has ended."""

    next_step: bytes | None

    def go_on(self) -> None:
        """Take a step."""


SomeProcess = TypeVar("SomeProcess", bound=Process)


def take_turns(processes: Sequence[SomeProcess], draw: random.Random) -> Iterator[SomeProcess]:
    """Let processes take steps until all have ended; yields the one that went on at the end of each burst."""
    held: dict[int, int] = {}  # process -> turning points of others that it still waits for
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
                held[id(chosen)] = draw.randint(1, MOST_POINTS) if draw.random() < 0.6 else -1
                break
            if due or draw.random() < SWITCHED:
                break
        last = chosen
        yield chosen
