"""How long the steps of a pipeline's call take, where somebody asks: `pipe.stopwatch = Stopwatch(device)`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Adds up seconds by step. On a GPU it waits at each step's borders, where work is only queued otherwise."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        self._wait()
        started = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """What has been added up since the last time."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def step_of(stopwatch: Stopwatch | None, name: str) -> contextlib.AbstractContextManager[None]:
    """A step that is timed where there is a stopwatch."""
    return contextlib.nullcontext() if stopwatch is None else stopwatch.step(name)
