"""Where the time of a run went: `jointdit run --profile`. Workers and tasks measure it, the driver adds it up.

    of workers    start (loading the model), text, encode (the given pictures or maps), denoise, decode, score,
                  other (of the calls), idle (between calls)
    of tasks      read, finish (score, filter, encode), write (objects and commits)

Of committed shards alone, by the process that made them; the shares are of all workers' time, and of all tasks'.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.usage import Usage

CALL = ("text", "encode", "denoise", "decode", "score")  # steps of a call to the model
WORKERS = ("start", *CALL, "other", "idle")
TASKS = ("read", "finish", "write")


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
