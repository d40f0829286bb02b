"""Job specs and contexts for benches: local folders, prompts that are all different."""

from __future__ import annotations

import os
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
    """Prompts of the kind that the tiny checkpoint knows; none comes twice."""
    made = []
    for number in range(count):
        shape, colour = SHAPES[number % len(SHAPES)], COLOURS[number // len(SHAPES) % len(COLOURS)]
        floor, wall = COLOURS[number // 32 % len(COLOURS)], COLOURS[number // 256 % len(COLOURS)]
        made.append(f"a {colour} {shape} on a {floor} floor in front of a {wall} wall, image {number}")
    return made


def write_prompts(path: Path, count: int) -> Path:
    """One prompt a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prompt}\n" for prompt in prompts(count)))
    return path


def spec_of(folder: Path, task: str, uri: str | Path, **sections: Any) -> JobSpec:
    """A job from `uri` into `folder`/out, with sections of the spec on top."""
    data: dict[str, Any] = {"task": task, "input": {"uri": str(uri)}, "output": {"uri": str(folder / "out")}}
    data["quality"] = {"max_quarantined_fraction": 0.0}
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
    return load_spec(data)


def context_of(folder: Path, task: str, side: int, **sections: Any) -> RunContext:
    """The context of a job whose model is left out; `side` in pixels."""
    spec = spec_of(folder, task, folder / "rows.txt", **sections)
    identity = ModelIdentity("bench", 0, side, side)
    storage, fingerprint = Storage(spec.output.uri), fingerprint_of(spec, identity)
    return RunContext(spec, storage, side, side, identity.weights, fingerprint, "bench")


@contextmanager
def in_environment(**values: str) -> Iterator[None]:
    """Environment variables inside, as they were afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def last_commit(output: str, shards: int) -> float:
    """When the last of so many shards was committed, in seconds since 1970, by the disk's clock."""
    found = sorted(path.stat().st_mtime for path in (Path(output) / "_commits").glob("*.json"))
    assert len(found) == shards, f"{len(found)} of {shards} shards are committed in {output}"
    return found[-1]


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Parts of at most so many."""
    return [items[start : start + size] for start in range(0, len(items), size)]
