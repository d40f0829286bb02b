"""The operations of a history: drawn from a seed, told in one line, and done by the engine's own functions.

Each operation carries all that it needs, its seed included, so that the others stay what they are when one is left out.
`perform` is for a process of its own (history.py): it changes modules of the engine, so that shards are made in this
process by a stand-in for the model instead of by Ray.
"""

from __future__ import annotations

import errno
import functools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import pipelines.about
import pipelines.card
import pipelines.gallery.blocks
import pipelines.refilter
import pipelines.retry
import pipelines.run
import pipelines.validate
from jointdit.errors import TransientError
from pipelines.context import RunContext
from pipelines.finish import finish_shard
from pipelines.garbage import collect_garbage
from pipelines.lease import Heartbeat
from pipelines.ledger import Ledger, PlannedShard
from pipelines.limits import Limits
from pipelines.model import ModelIdentity
from pipelines.progress import Progress
from pipelines.prune import prune_versions
from pipelines.read import read_shard
from pipelines.spec import load_spec
from pipelines.storage import Storage
from tests.chaos.steps import Death, Failure
from tests.chaos.world import CHANGES
from tests.stand_in import StandInPipeline, StandInWorker

SIZE = 16  # pixels
IDENTITY = ModelIdentity(weights="stand-in", bytes=0, height=SIZE, width=SIZE)
SHARD_ATTEMPTS = 25  # transient faults that a run bears
FAVOURS = (0.2, 1, 1, 3)  # a history does some kinds of things more often than others do
WEIGHTS_TOGETHER = {"run": 3, "retry": 1, "refilter": 2, "prune": 1, "gc": 1.5}
WEIGHTS = {"run": 9, "retry": 2, "refilter": 2.5, "prune": 1.5, "gc": 1.5, "validate": 0.5, "together": 4}
CHANGE_WEIGHTS = dict(zip(CHANGES, (2, 1.5, 1, 1.5, 0.7, 1, 1.5, 0.4, 0.3, 1), strict=True))
UNTIDY = ("README.md and stats.json are not those of", "no version is published")  # while a history is under way


@dataclass(frozen=True)
class Operation:
    """One operation; `parts` run at once, in turns that the seed decides."""

    kind: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    death: Death | None = None
    failure: Failure | None = None
    parts: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        words = [f"{name}={value!r}" for name, value in self.settings.items()]
        if self.death:
            words.append(f"killed {'after' if self.death.after else 'before'} step {self.death.step}")
        if self.failure:
            name, when = errno.errorcode[self.failure.errno], "after" if self.failure.after else "at"
            words.append(f"{name} {when} step {self.failure.step}, {self.failure.times} times")
        if self.parts:
            return "at once: " + " | ".join(map(str, self.parts)) + f" (seed {self.seed})"
        return f"{self.kind}({', '.join(words)}) (seed {self.seed})"


@dataclass(frozen=True)
class Plot:
    """A whole history: the job, and what happens to it."""

    seed: int  # of the input that it begins with
    samples_per_row: int
    operations: tuple[Operation, ...]


def draw_plot(seed: int, number: int) -> Plot:
    """The history of this seed and number."""
    draw = random.Random(f"{seed}/{number}")
    theme = {kind: draw.choice(FAVOURS) for kind in (*WEIGHTS, *CHANGES)}
    operations = [_draw_work(draw, "run")]
    for place in range(draw.randint(14, 24)):
        operations.append(draw_operation(random.Random(f"{seed}/{number}/{place}"), theme))
    return Plot(draw.getrandbits(48), draw.choice([1, 1, 2]), tuple(operations))


def draw_operation(draw: random.Random, theme: Mapping[str, float]) -> Operation:
    """One operation: a change of the input, work, or two or three of both at once."""
    if draw.random() < 0.38:
        return _draw_change(draw, theme)
    kind = _draw_kind(draw, WEIGHTS, theme)
    if kind != "together":
        return _draw_work(draw, kind)
    seed = draw.getrandbits(48)
    kinds = [_draw_kind(draw, WEIGHTS_TOGETHER, theme) for _ in range(draw.choice([2, 2, 3]))]
    parts = [_draw_work(draw, each, rarely=0.08) for each in kinds]
    parts += [_draw_change(draw, theme) for _ in range(draw.choice([0, 0, 1, 2]))]
    return Operation("together", seed, parts=tuple(parts))


def _draw_kind(draw: random.Random, weights: Mapping[str, float], theme: Mapping[str, float]) -> str:
    return draw.choices(list(weights), [weight * theme[kind] for kind, weight in weights.items()])[0]


def _draw_change(draw: random.Random, theme: Mapping[str, float]) -> Operation:
    kind = _draw_kind(draw, CHANGE_WEIGHTS, theme)
    return Operation(kind, draw.getrandbits(48))


def _draw_work(draw: random.Random, kind: str, rarely: float = 0.2) -> Operation:
    seed, settings = draw.getrandbits(48), {}
    if kind == "run":
        settings = draw_run(draw)
    elif kind == "retry":
        settings = {
            "outcomes": draw.choice([["quarantined"], ["quarantined"], ["rejected"], ["quarantined", "rejected"]])
        }
    elif kind == "refilter":
        settings = {"quality": draw_quality(draw)}
    elif kind == "prune":
        settings = {"retain": draw.choice([2, 2, 3])}
    elif kind == "gc":
        settings = {"hours": draw.choice([0, 0, 0, 24])}
    death = failure = None
    if draw.random() < rarely:
        death = Death(_draw_step(draw), draw.random() < 0.5)
    elif draw.random() < rarely / 2:
        number = draw.choice([errno.EIO, errno.EIO, errno.ENOSPC])
        failure = Failure(_draw_step(draw), number, draw.choice([1, 1, 2, 5]), draw.random() < 0.4)
    return Operation(kind, seed, {name: value for name, value in settings.items() if value}, death, failure)


def _draw_step(draw: random.Random) -> int:
    return int(2 ** draw.uniform(0, 8))


def draw_run(draw: random.Random) -> dict[str, Any]:
    """Settings of a run; what is left out is off."""
    return {
        "shards": draw.choice([None, None, None, 1, 2]),
        "regenerate": draw.choice([0, 0, 0, 1, 2]),
        "quality": draw_quality(draw) if draw.random() < 0.5 else {},
        "retain": draw.choice([None, None, None, 2]),
        "shard_rows": draw.choice([2, 3, 4]),
        "heals": draw.random() < 0.15,
        "describes": draw.random() < 0.07,
    }


def draw_quality(draw: random.Random) -> dict[str, Any]:
    """The section `quality` of a spec, as far as `refilter` can set it."""
    filters: list[dict[str, Any]] = [{"kind": "depth_range", "min_span": draw.choice([0.05, 0.5, 0.8])}]
    if draw.random() < 0.4:
        filters.append({"kind": "near_duplicate"})
    best = {"k": 1, "by": "depth_span", "order": draw.choice(["highest", "lowest"])}
    return {"filters": filters, **({"keep_best": best} if draw.random() < 0.4 else {})}


def spec_of(operation: Operation, plot: Plot, uris: Sequence[str], output: str) -> dict[str, Any]:
    """The job spec of a run."""
    settings = operation.settings
    quality = {"max_quarantined_fraction": 1.0, "regenerate": settings.get("regenerate", 0)}
    quality |= settings.get("quality") or {"filters": [{"kind": "depth_range", "min_span": 0.05}]}
    return {
        "task": "joint",
        "input": {"uri": list(uris), "samples_per_row": plot.samples_per_row},
        "output": {"uri": output, "shard_rows": settings.get("shard_rows", 3), "points": {"format": "ply"}}
        | ({"retain_versions": settings["retain"]} if settings.get("retain") else {}),
        "model": {"batch_size": 2},
        "quality": quality,
    }


def perform(operation: Operation, plot: Plot, uris: Sequence[str], output: str) -> str:
    """Do it in this process; returns what came of it, in words."""
    if not operation.settings.get("describes"):
        pipelines.about.refresh = lambda *_: None  # README.md and the gallery cost more than all else
    settings = operation.settings
    if operation.kind == "run":
        return _run(operation, spec_of(operation, plot, uris, output))
    if operation.kind == "retry":
        planned = pipelines.retry.plan_retry(output, settings["outcomes"])
        return f"planned again {planned.counts}"
    if operation.kind == "refilter":
        quality = {"keep_best": None, **settings["quality"]}
        overrides = [f"quality.{name}={json.dumps(value)}" for name, value in quality.items()]
        found = pipelines.refilter.refilter(output, overrides)
        return f"version {found.version.number}, {'new' if found.is_new else 'as before'}"
    if operation.kind == "prune":
        return f"pruned {prune_versions(Storage(output), settings['retain'], 0)}"
    if operation.kind == "gc":
        return f"deleted {len(collect_garbage(output, 3600.0 * settings.get('hours', 0)).objects)} objects"
    assert operation.kind == "validate", operation.kind
    problems = pipelines.validate.validate(output).problems
    if not settings.get("strict"):
        problems = [each for each in problems if not each.startswith(UNTIDY)]
    assert not problems, f"VALIDATE {problems}"
    return "validated"


def rehearse(folder: Path) -> None:
    """Do one of each in this process, so that what is imported late is there when others are forked off it."""
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.csv").write_text("id,prompt\nr1,NAN\nr2,FLAT\nr3,\nr4,w\n")
    plot, uris, output = Plot(0, 1, ()), [str(folder / "in")], str(folder / "out")
    quality = {"filters": [{"kind": "depth_range", "min_span": 0.0}, {"kind": "near_duplicate"}]}
    work = [("run", {"describes": True}), ("refilter", {"quality": quality}), ("retry", {"outcomes": ["quarantined"]})]
    work += [("run", {"heals": True}), ("prune", {"retain": 1}), ("gc", {"hours": 1}), ("validate", {})]
    refresh = pipelines.about.refresh
    for kind, settings in work:
        perform(Operation(kind, 0, settings), plot, uris, output)
    pipelines.about.refresh = refresh


def _run(operation: Operation, spec: dict[str, Any]) -> str:
    pipelines.run.identify_job = lambda *_: IDENTITY
    pipelines.run.check_job_weights = lambda *_: None
    pipelines.run.Heartbeat = functools.partial(Heartbeat, beat_seconds=1e6)  # its thread would take steps
    pipelines.run.generate_all = functools.partial(_make_here, operation)
    summary = pipelines.run.run_job(load_spec(spec))
    if summary.version is None:
        return f"stopped, {summary.stopped and summary.stopped.shards} shards left"
    new = "new" if summary.is_new else "as before"
    return f"version {summary.version.number}, {new}, {summary.version.counts}"


def _make_here(
    operation: Operation, context: RunContext, ledger: Ledger, progress: Progress, limits: Limits, _: type | None
) -> list[PlannedShard]:
    """What `generate_all` of the engine does, in this process, in an order that the seed decides."""
    draw = random.Random(f"{operation.seed}/shards")
    left = operation.settings.get("shards", -1)
    worker = (Healed if operation.settings.get("heals") else Varied)(context, "cpu", 1)
    worker.set_up()
    pending = pipelines.run.shards_to_make(ledger) or pipelines.run.next_round(context, ledger)
    while pending:
        for entry in draw.sample(pending, len(pending)):
            if left == 0:
                limits.stopped = "the operation makes some shards only"
                return pipelines.run.shards_to_make(ledger)
            _make(context, entry, worker)
            left -= 1
        pending = pipelines.run.next_round(context, ledger)
    return []


def _make(context: RunContext, entry: PlannedShard, worker: StandInWorker) -> None:
    for attempt in range(SHARD_ATTEMPTS):
        try:
            rows, parts = read_shard(context, entry)
            finish_shard(context, entry, rows, *(worker.generate(part)[0] for part in parts))
            return
        except TransientError:
            if attempt == SHARD_ATTEMPTS - 1:
                raise


class VariedPipeline(StandInPipeline):
    """The stand-in, with depth that spans more or less, and like images for prompts of one TWIN."""

    def __call__(self, *, seeds: Sequence[int], prompt: Sequence[str] | None = None, **given: Any) -> SimpleNamespace:
        made = super().__call__(seeds=seeds, prompt=prompt, **given)
        for number, (seed, text) in enumerate(zip(seeds, prompt or (), strict=True)):
            made.disparity[number] *= np.random.default_rng(seed).uniform(0.3, 1)
            if "TWIN" in text:
                twin = np.random.default_rng(int(text.partition("TWIN")[2][0]))
                made.rgb[number] = twin.integers(0, 256, made.rgb[number].shape, dtype=np.uint8)
        return made


class Varied(StandInWorker):
    """The worker with that stand-in."""

    def load(self) -> StandInPipeline:
        return VariedPipeline(self.context.height, self.context.width)


class HealedPipeline(VariedPipeline):
    """The same after its faults were mended: no prompt upsets it."""

    def __call__(self, *, prompt: Sequence[str] | None = None, **given: Any) -> SimpleNamespace:
        return super().__call__(prompt=prompt and ["fine"] * len(prompt), **given)


class Healed(Varied):
    """The worker with the healed stand-in."""

    def load(self) -> StandInPipeline:
        return HealedPipeline(self.context.height, self.context.width)
