"""`jointdit validate --quick`: the account and the sizes, without opening a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.dataset.validation.validate import validate
from pipelines.ledger.entries import OBJECT_FOLDERS
from pipelines.store.storage import Storage
from tests.edited_segments import edit_segments
from tests.local_job import LocalJob


@pytest.fixture
def job(make_job) -> LocalJob:
    """A published job with samples of all outcomes."""
    quality = {"filters": [{"kind": "depth_range"}]}
    job = make_job(["a", "FLAT", "NAN", "b"], quality=quality, output={"points": "ply"})
    assert job.complete().counts == {"kept": 2, "rejected": 1, "quarantined": 1}
    return job


@pytest.mark.parametrize("folder", ["data", "rejected", "quarantine", "pointclouds"])
def test_files_that_are_missing_or_of_another_size_are_found(job: LocalJob, folder: str) -> None:
    assert validate(job.context.storage.uri, quick=True).problems == []
    path = min(Path(job.context.storage.path(folder)).rglob("*.p*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    (short,) = validate(job.context.storage.uri, quick=True).problems
    assert f"has {len(whole) - 1} bytes, its commit says {len(whole)}" in short
    path.unlink()
    (missing,) = validate(job.context.storage.uri, quick=True).problems
    assert "is named by a commit and missing" in missing


def test_a_sample_that_is_lost_from_a_segment_is_found(job: LocalJob) -> None:
    edit_segments(job.context.storage, samples=lambda rows: rows.pop())
    assert any("and not so in version 1" in text for text in validate(job.context.storage.uri, quick=True).problems)


def test_no_file_of_samples_is_opened(job: LocalJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("read_bytes", "open"):
        ask = getattr(Storage, name)
        monkeypatch.setattr(Storage, name, lambda self, path, ask=ask: seen.append(path) or ask(self, path))
    found = validate(job.context.storage.uri, quick=True)
    assert (found.problems, found.images, found.files) == ([], 0, 3 + 2)
    assert seen
    assert not [path for path in seen if path.split("/")[0] in OBJECT_FOLDERS]
