"""What a run takes of the cluster: how long workers held GPUs or CPUs and were at work with them, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.spec_sections import PriceSpec

HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Usage:
    """Of all workers of a run until now."""

    held_seconds: float = 0.0  # from the time they were placed to their end
    busy_seconds: float = 0.0  # in the model, for samples that were finished
    gpus: float = 0.0  # a worker
    cpus: float = 0.0  # a worker
    starting_seconds: float = 0.0  # of those held, until the model was loaded

    def __add__(self, other: Usage) -> Usage:
        """Both; workers of one run are all alike."""
        held, busy = self.held_seconds + other.held_seconds, self.busy_seconds + other.busy_seconds
        starting = self.starting_seconds + other.starting_seconds
        return Usage(held, busy, max(self.gpus, other.gpus), max(self.cpus, other.cpus), starting)

    @property
    def gpu_hours(self) -> float:
        """GPUs held, times hours."""
        return self.held_seconds * self.gpus / HOUR

    @property
    def cpu_hours(self) -> float:
        """CPUs held, times hours; of workers with a GPU too."""
        return self.held_seconds * self.cpus / HOUR

    @property
    def busy_share(self) -> float:
        """Of the time they were held."""
        return self.busy_seconds / self.held_seconds if self.held_seconds else 0.0

    def cost(self, price: PriceSpec) -> float:
        """In the price's currency: of the GPUs, or of the CPUs where there are none."""
        return self.gpu_hours * price.gpu_hour if self.gpus else self.cpu_hours * price.cpu_hour
