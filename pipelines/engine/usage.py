"""GPU-hours, CPU-hours, busy share and cost of a run."""

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
    """The use of all workers of a run so far."""

    held_seconds: float = 0.0  # from a worker's placement to its end
    busy_seconds: float = 0.0  # in the model, for finished samples
    gpus: float = 0.0  # per worker
    cpus: float = 0.0  # per worker
    starting_seconds: float = 0.0  # part of the held seconds, until the model was loaded

    def __add__(self, other: Usage) -> Usage:
        """The sum. All workers of a run have the same GPUs and CPUs."""
        held, busy = self.held_seconds + other.held_seconds, self.busy_seconds + other.busy_seconds
        starting = self.starting_seconds + other.starting_seconds
        return Usage(held, busy, max(self.gpus, other.gpus), max(self.cpus, other.cpus), starting)

    @property
    def gpu_hours(self) -> float:
        """GPUs held times hours."""
        return self.held_seconds * self.gpus / HOUR

    @property
    def cpu_hours(self) -> float:
        """CPUs held times hours, by workers with a GPU too."""
        return self.held_seconds * self.cpus / HOUR

    @property
    def busy_share(self) -> float:
        """The busy share of the held time, 0 to 1."""
        return self.busy_seconds / self.held_seconds if self.held_seconds else 0.0

    def cost(self, price: PriceSpec) -> float:
        """The cost of the GPUs, or of the CPUs if there are no GPUs, in the currency of the price."""
        return self.gpu_hours * price.gpu_hour if self.gpus else self.cpu_hours * price.cpu_hour


def profile_of(seconds: Mapping[str, float], usage: Usage) -> dict[str, float]:
    """Seconds by step of the workers and tasks, from the seconds of committed shards and the use of all workers."""
    calls = {name: seconds.get(name, 0.0) for name in CALL}
    write = seconds.get("write", 0.0)
    profile = {
        "start": usage.starting_seconds,
        **calls,
        "other": max(0.0, usage.busy_seconds - sum(calls.values())),
        "idle": max(0.0, usage.held_seconds - usage.starting_seconds - usage.busy_seconds),
        "read": seconds.get("read", 0.0),
        "finish": max(0.0, seconds.get("finish", 0.0) - write),
        "write": write,
    }
    return {name: round(value, 3) for name, value in profile.items()}


def shares_of(profile: Mapping[str, float]) -> dict[str, float]:
    """The share of each step in the time of all workers, or of all tasks, 0 to 1."""
    whole = {name: sum(profile[step] for step in group) for group in (WORKERS, TASKS) for name in group}
    return {name: seconds / whole[name] if whole[name] else 0.0 for name, seconds in profile.items()}
