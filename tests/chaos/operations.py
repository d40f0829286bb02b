"""The operations of a history, performed by functions of the engine.

`perform` runs in a new process (history.py), because it patches modules of the engine: a stand-in model generates
shards in this process instead of on Ray.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import pipelines.dataset.about
import pipelines.dataset.card
import pipelines.dataset.gallery.blocks
import pipelines.dataset.garbage
import pipelines.dataset.refilter
import pipelines.dataset.validation.validate
import pipelines.plan.retry
import pipelines.run.job
import pipelines.run.opening
import pipelines.run.rounds
from pipelines.dataset.garbage import collect_garbage, prune_versions
from pipelines.dataset.publish import publish_committed
from pipelines.engine.limits import Limits
from pipelines.engine.progress import Progress
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.lease import Heartbeat
from pipelines.ledger.ledger import Ledger
from pipelines.model.identity import ModelIdentity
from pipelines.spec.job import load_spec
from pipelines.stages.context import RunContext
from pipelines.stages.finish import Receipt, finish_shard
from pipelines.stages.read import read_shard
from pipelines.store.errors import TransientError
from pipelines.store.storage import Storage
from tests.chaos.plots import Operation, Plot
from tests.stand_in import StandInPipeline, StandInWorker

SIZE = 16  # pixels
IDENTITY = ModelIdentity(weights="stand-in", bytes=0, height=SIZE, width=SIZE)
UNTIDY = ("README.md and stats.json are not those of", "no version is published")  # before the end of a history
SHARD_ATTEMPTS = 25  # attempts at a shard with transient faults


def spec_of(operation: Operation, plot: Plot, uris: Sequence[str], output: str) -> dict[str, Any]:
    """Return the job spec of a run."""
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
    """Perform an operation in this process; return its result in words."""
    if not operation.settings.get("describes"):
        pipelines.dataset.about.refresh = lambda *_: None  # README.md and gallery take most of the time
    settings = operation.settings
    if settings.get("later"):  # as if all objects were a day old
        pipelines.dataset.garbage.collect_garbage = lambda uri, *_: collect_garbage(uri, 0.0)
    if operation.kind == "run":
        return _run(operation, spec_of(operation, plot, uris, output))
    if operation.kind == "retry":
        planned = pipelines.plan.retry.plan_retry(output, settings["outcomes"])
        return f"planned to retry {planned.counts}"
    if operation.kind == "publish":
        version, is_new = publish_committed(Storage(output), Ledger(Storage(output)))
        return f"version {version and version.number}, {'new' if is_new else 'unchanged'}"
    if operation.kind == "refilter":
        quality = {"keep_best": None, **settings["quality"]}
        overrides = [f"quality.{name}={json.dumps(value)}" for name, value in quality.items()]
        result = pipelines.dataset.refilter.refilter(output, overrides)
        return f"version {result.version.number}, {'new' if result.is_new else 'unchanged'}"
    if operation.kind == "prune":
        return f"pruned {prune_versions(Storage(output), settings['retain'], 0)}"
    if operation.kind == "gc":
        return f"deleted {len(collect_garbage(output, 3600.0 * settings.get('hours', 0)).objects)} objects"
    assert operation.kind == "validate", operation.kind
    problems = pipelines.dataset.validation.validate.validate(output).problems
    if not settings.get("strict"):
        problems = [problem for problem in problems if not problem.startswith(UNTIDY)]
    assert not problems, f"VALIDATE {problems}"
    return "validated"


def rehearse(folder: Path) -> None:
    """Perform one operation of each kind in this process, so that forks have all modules imported."""
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.csv").write_text("id,prompt\nr1,NAN\nr2,FLAT\nr3,\nr4,w\n")
    plot, uris, output = Plot(0, 1, ()), [str(folder / "in")], str(folder / "out")
    quality = {"filters": [{"kind": "depth_range", "min_span": 0.0}, {"kind": "near_duplicate"}]}
    work = [("run", {"describes": True}), ("refilter", {"quality": quality}), ("retry", {"outcomes": ["quarantined"]})]
    work += [
        ("publish", {}),
        ("run", {"heals": True}),
        ("prune", {"retain": 1}),
        ("gc", {"hours": 1}),
        ("validate", {}),
    ]
    refresh = pipelines.dataset.about.refresh
    for kind, settings in work:
        perform(Operation(kind, 0, settings), plot, uris, output)
    pipelines.dataset.about.refresh = refresh


def _run(operation: Operation, spec: dict[str, Any]) -> str:
    pipelines.run.opening.identify_job = lambda *_: IDENTITY
    pipelines.run.opening.check_job_weights = lambda *_: None
    pipelines.run.job.Heartbeat = functools.partial(Heartbeat, beat_seconds=1e6)  # its thread would take steps
    pipelines.run.job.generate_all = functools.partial(_generate_here, operation)
    summary = pipelines.run.job.run_job(load_spec(spec))
    if summary.version is None:
        return f"stopped, {summary.stopped and summary.stopped.shards} shards pending"
    new = "new" if summary.is_new else "unchanged"
    return f"version {summary.version.number}, {new}, {summary.version.counts}"


def _generate_here(
    operation: Operation, context: RunContext, ledger: Ledger, progress: Progress, limits: Limits, *_: object
) -> list[PlannedShard]:
    """Replace `generate_all` of the engine: generate in this process, in an order from the seed."""
    draw = random.Random(f"{operation.seed}/shards")
    left = operation.settings.get("shards", -1)
    worker = (Healed if operation.settings.get("heals") else Varied)(context, "cpu", 1)
    worker.set_up()
    pending = pipelines.run.rounds.shards_to_make(ledger) or pipelines.run.rounds.next_round(context, ledger)
    while pending:
        for entry in draw.sample(pending, len(pending)):
            if left == 0:
                limits.stopped = "the operation generates only some shards"
                return pipelines.run.rounds.shards_to_make(ledger)
            progress.committed(_generate(context, entry, worker))
            if operation.settings.get("publishes") and draw.random() < 0.5:
                publish_committed(context.storage, Ledger(context.storage), context.spec)
            left -= 1
        pending = pipelines.run.rounds.next_round(context, ledger)
    return []


def _generate(context: RunContext, entry: PlannedShard, worker: StandInWorker) -> Receipt:
    for attempt in range(SHARD_ATTEMPTS):
        try:
            rows, parts = read_shard(context, entry)
            return finish_shard(context, entry, rows, *(worker.generate(part)[0] for part in parts))
        except TransientError:
            if attempt == SHARD_ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


class VariedPipeline(StandInPipeline):
    """The stand-in with varying depth span, and similar images for prompts with the same TWIN."""

    def __call__(
        self, *, seeds: Sequence[int], prompt: Sequence[str] | None = None, **arguments: Any
    ) -> SimpleNamespace:
        output = super().__call__(seeds=seeds, prompt=prompt, **arguments)
        for number, (seed, text) in enumerate(zip(seeds, prompt or (), strict=True)):
            output.disparity[number] *= np.random.default_rng(seed).uniform(0.3, 1)
            if "TWIN" in text:
                twin = np.random.default_rng(int(text.partition("TWIN")[2][0]))
                output.rgb[number] = twin.integers(0, 256, output.rgb[number].shape, dtype=np.uint8)
        return output


class Varied(StandInWorker):
    """The worker with VariedPipeline."""

    def load(self) -> StandInPipeline:
        return VariedPipeline(self.context.height, self.context.width)


class HealedPipeline(VariedPipeline):
    """VariedPipeline without faults: no prompt makes it fail."""

    def __call__(self, *, prompt: Sequence[str] | None = None, **arguments: Any) -> SimpleNamespace:
        return super().__call__(prompt=prompt and ["fine"] * len(prompt), **arguments)


class Healed(Varied):
    """The worker with HealedPipeline."""

    def load(self) -> StandInPipeline:
        return HealedPipeline(self.context.height, self.context.width)
