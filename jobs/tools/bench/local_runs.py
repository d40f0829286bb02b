"""Job specs, contexts, prompts and fresh processes for benches."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.model.fingerprint import fingerprint_of
from pipelines.model.identity import ModelIdentity
from pipelines.spec.job import JobSpec, load_spec
from pipelines.stages.context import RunContext
from pipelines.store.storage import Storage

COLOURS = ("red", "green", "blue", "yellow", "white", "gray", "purple", "orange")
SHAPES = ("sphere", "cube", "cylinder", "cone")


def prompts(count: int) -> list[str]:
    """Return distinct prompts like those the tiny checkpoint was trained on."""
    texts = []
    for number in range(count):
        shape, colour = SHAPES[number % len(SHAPES)], COLOURS[number // len(SHAPES) % len(COLOURS)]
        floor, wall = COLOURS[number // 32 % len(COLOURS)], COLOURS[number // 256 % len(COLOURS)]
        texts.append(f"a {colour} {shape} on a {floor} floor in front of a {wall} wall, image {number}")
    return texts


def write_prompts(path: Path, count: int) -> Path:
    """Write distinct prompts, one a line; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prompt}\n" for prompt in prompts(count)))
    return path


def spec_of(folder: Path, task: str, uri: str | Path, **sections: Any) -> JobSpec:
    """Return a job from `uri` to `folder`/out; `sections` override those of the spec."""
    data: dict[str, Any] = {"task": task, "input": {"uri": str(uri)}, "output": {"uri": str(folder / "out")}}
    data["quality"] = {"max_quarantined_fraction": 0.0}
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
    return load_spec(data)


def context_of(folder: Path, task: str, side: int, **sections: Any) -> RunContext:
    """Return the context of a job without a model; `side` in pixels."""
    spec = spec_of(folder, task, folder / "rows.txt", **sections)
    identity = ModelIdentity("bench", 0, side, side)
    storage, fingerprint = Storage(spec.output.uri), fingerprint_of(spec, identity)
    return RunContext(spec, storage, side, side, identity.weights, fingerprint, "bench")


@contextmanager
def in_environment(**values: str) -> Iterator[None]:
    """Set environment variables within the block and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def last_commit(output: str, shards: int) -> float:
    """Return the time of the last of `shards` commits, in seconds since 1970 by the file system."""
    times = sorted(path.stat().st_mtime for path in (Path(output) / "_commits").glob("*.json"))
    assert len(times) == shards, f"{len(times)} of {shards} shards are committed in {output}"
    return times[-1]


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split a sequence into parts of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def call_in_process(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m jobs.tools.bench.<module>` and return the JSON object that it prints."""
    command = [sys.executable, "-m", f"jobs.tools.bench.{module}", *arguments]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
