"""Jobs without Ray: read, worker and finish run in this process with the stand-in model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset import about
from pipelines.dataset.publish import publish
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version
from pipelines.model.fingerprint import fingerprint_of, recipe_of
from pipelines.model.identity import ModelIdentity
from pipelines.plan.propose import Proposal, extend_plan, propose
from pipelines.run.rounds import pending_shards
from pipelines.spec.job import load_spec
from pipelines.stages.context import RunContext
from pipelines.stages.finish import Receipt, finish_shard
from pipelines.stages.read import NO_ISOLATION, Isolation, read_shard
from pipelines.store.storage import Storage
from tests.stand_in import StandInWorker

IDENTITY = ModelIdentity(weights="stand-in", bytes=0, height=32, width=32)


@dataclass
class LocalJob:
    """A job on a local folder or S3 whose shards run in this process."""

    context: RunContext
    ledger: Ledger

    def plan(self) -> Proposal:
        spec, fingerprint = self.context.spec, self.context.fingerprint
        self.ledger.open_job(spec, fingerprint)
        return extend_plan(spec, fingerprint, self.ledger, propose(spec, fingerprint, self.ledger))

    def run_shard(self, entry: PlannedShard, isolation: Isolation = NO_ISOLATION) -> Receipt:
        worker = StandInWorker(self.context, "cpu", 1)
        worker.set_up()
        rows, parts = read_shard(self.context, entry, isolation)
        return finish_shard(self.context, entry, rows, *(worker.generate(part)[0] for part in parts))

    def run(self) -> list[Receipt]:
        return [self.run_shard(entry) for entry in pending_shards(self.ledger)]

    def publish(self) -> tuple[Version, bool]:
        published = publish(self.context.storage, self.ledger, self.context.spec)
        about.refresh(self.context.storage, self.ledger)
        return published

    def complete(self) -> Version:
        self.plan()
        self.run()
        return self.publish()[0]


def job_in(folder: Path, prompts: list[str] | None = None, **sections: Any) -> LocalJob:
    """Return a job in a folder; `sections` override those of the spec, `prompts` are written to a text file."""
    if prompts is not None:
        (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    data: dict[str, Any] = {"task": "joint", "quality": {"max_quarantined_fraction": 1.0}}
    data["input"] = {"uri": str(folder / "prompts.txt")}
    data["output"] = {"uri": str(folder / "out"), "shard_rows": 4}
    data["model"] = {"batch_size": 2}
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
    spec = load_spec(data)
    storage = Storage(spec.output.uri)
    ledger = Ledger(storage)
    fingerprint = fingerprint_of(spec, IDENTITY, recipe_of(ledger.recorded_fingerprint()))
    context = RunContext(spec, storage, IDENTITY.height, IDENTITY.width, IDENTITY.weights, fingerprint, "test")
    return LocalJob(context, ledger)


def input_folder(parent: Path, **texts: str) -> Path:
    """Write a folder of text files, one per keyword: a="a0\\na1\\n" writes two prompts to a.txt."""
    folder = parent / "in"
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., LocalJob]:
    """Return make_job(prompts, **sections of the spec) -> LocalJob in the test's folder."""
    return functools.partial(job_in, tmp_path)
