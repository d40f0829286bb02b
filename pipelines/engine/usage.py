"""What a run takes of the cluster: how long workers held GPUs or CPUs and were at work with them, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.spec.running import PriceSpec

HOUR = 3600.0  # seconds
CALL = ("text", "encode", "denoise", "decode", "score")  # steps of a call to the model
WORKERS = ("start", *CALL, "other", "idle")
TASKS = ("read", "finish", "write")


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


def profile_of(seconds: Mapping[str, float], usage: Usage) -> dict[str, float]:
    """Seconds by step, from those of committed shards by stage, and from what the workers took in all."""
    calls = {name: seconds.get(name, 0.0) for name in CALL}
    write = seconds.get("write", 0.0)
    found = {
        "start": usage.starting_seconds,
        **calls,
        "other": max(0.0, usage.busy_seconds - sum(calls.values())),
        "idle": max(0.0, usage.held_seconds - usage.starting_seconds - usage.busy_seconds),
        "read": seconds.get("read", 0.0),
        "finish": max(0.0, seconds.get("finish", 0.0) - write),
        "write": write,
    }
    return {name: round(value, 3) for name, value in found.items()}


def shares_of(profile: Mapping[str, float]) -> dict[str, float]:
    """Of each step in the time of all workers, or of all tasks; 0 to 1."""
    whole = {name: sum(profile[each] for each in group) for group in (WORKERS, TASKS) for name in group}
    return {name: seconds / whole[name] if whole[name] else 0.0 for name, seconds in profile.items()}
