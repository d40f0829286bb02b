"""Times of the steps of a pipeline call: set `pipe.stopwatch = Stopwatch(device)`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Sums seconds by step. It synchronises a GPU before and after each step, because kernels run asynchronously."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the time of the block."""
        self._wait()
        started = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return the seconds by step since the last call, and reset them."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def step_of(stopwatch: Stopwatch | None, name: str) -> contextlib.AbstractContextManager[None]:
    """Return a context that measures a step if there is a stopwatch."""
    return contextlib.nullcontext() if stopwatch is None else stopwatch.step(name)
