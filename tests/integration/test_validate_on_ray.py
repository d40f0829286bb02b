"""Validation on a Ray cluster finds what it finds on this machine."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.dataset.validation.checks import Checked
from pipelines.dataset.validation.objects import Batch, CheckBatch, Checking
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.entries import StoredObject
from pipelines.run.checks_on_ray import by_tasks, on_ray
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage
from tests.local_job import job_in


@dataclass(frozen=True)
class DyingOnce(CheckBatch):
    """Kills the first process that checks a batch."""

    mark: str = ""

    def __call__(self, batch: Batch) -> list[Checked]:
        if not os.path.exists(self.mark):
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [Checked(images=stored.rows) for stored in batch]


@pytest.mark.timeout(200)
def test_a_cluster_finds_the_same_and_a_lost_batch_is_checked_again(ray_cluster: None, tmp_path: Path) -> None:
    job = job_in(tmp_path, [f"p{n}" for n in range(8)], output={"shard_rows": 2, "points": "ply"})
    job.complete()
    uri = job.context.storage.uri
    with on_ray() as map_batches:
        assert validate(uri, how=Checking(map_batches)) == validate(uri)
        table = next(iter(Path(job.context.storage.path("data")).iterdir()))
        table.write_bytes(table.read_bytes()[:-1] + b"x")
        found, expected = validate(uri, how=Checking(map_batches)), validate(uri)
        assert any("SHA-256" in problem for problem in expected.problems)
        assert sorted(found.problems) == sorted(expected.problems)
        spec = load_spec({"task": "joint", "input": {"uri": "a.txt"}, "output": {"uri": str(tmp_path / "x")}})
        check = DyingOnce(Storage(uri), spec, str(tmp_path / "mark"))
        one = [StoredObject(str(n), 1, "", n, "kept") for n in range(6)]
        done = dict(by_tasks(check, [(one[0], one[1]), (one[2],), tuple(one[3:])]))
    assert {stored.path: c.images for batch, cs in done.items() for stored, c in zip(batch, cs, strict=True)} == {
        str(n): n for n in range(6)
    }
