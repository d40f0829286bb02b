"""Validation of retried and superseded samples, of a dataset on S3, and of folders without a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jointdit.errors import StoreError
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.entries import Commit
from pipelines.plan.retry import plan_retry
from tests.local_job import LocalJob
from tests.pipelines.dataset.test_validate import double_a_sample, edit_commit, first_commit
from tests.pipelines.dataset.test_validate import job as job
from tests.pipelines.dataset.test_validate import whole as whole


def test_retried_and_superseded_samples_are_recounted(make_job, tmp_path: Path) -> None:
    """Damage in what a retry or a newer input brought, and in an older version's files, is found as well."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("a0\n\n")
    (folder / "b.txt").write_text("b0\n")
    job = make_job(input={"uri": str(folder)})
    job.complete()
    plan_retry(job.context.storage.uri, ["quarantined"])
    job.complete()
    (folder / "b.txt").write_text("b0 changed\n")
    version = job.complete()
    assert validate(job.context.storage.uri).problems == []
    retried = next(entry for entry in job.ledger.planned() if entry.retry)
    path = Path(job.context.storage.path(f"_commits/{retried.shard.id}.json"))
    whole = path.read_text()
    fields = json.loads(whole)
    fields["samples"]["index"] = [1]
    path.write_text(json.dumps(fields))
    assert f"shard {retried.shard.id}: 1 of 1 planned samples are lost." in validate(job.context.storage.uri).problems
    path.unlink()
    problems = validate(job.context.storage.uri).problems
    assert f"shard {retried.shard.id}: 1 samples of version {version.number} have no commit." in problems
    path.write_text(whole)
    (old,) = [path for path in version.files_of("kept") if "-v000003-" in path]
    (folder / "a.txt").write_text("a0 changed\n")
    assert old not in job.complete().files_of("kept")
    assert validate(job.context.storage.uri).problems == []
    job.context.storage.write_bytes(old, b"")
    assert [problem for problem in validate(job.context.storage.uri).problems if old in problem]


def test_a_dataset_on_s3(make_job, s3) -> None:
    job = make_job(["a", "b"], output={"uri": s3.make_bucket() + "/out", "points": "ply"})
    job.complete()
    assert validate(job.context.storage.uri).problems == []
    job.context.storage.delete(job.context.storage.list("data")[0].path)
    assert len(validate(job.context.storage.uri).problems) == 1


def test_a_folder_without_a_job(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no job"):
        validate(str(tmp_path))


def test_the_commit_that_was_edited_still_parses(job: LocalJob) -> None:
    """Guards the tests above: their edits are damage to the account, not to the format."""
    edit_commit(job, double_a_sample)
    assert len(Commit.from_bytes(first_commit(job).read_bytes(), "x").samples) == 9
