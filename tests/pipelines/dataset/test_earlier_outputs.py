"""An output that an earlier release wrote is read, extended, refiltered, retried and validated.

`output_of_format_2` has four versions of format 2: a run with rejected and quarantined samples, a changed file, a
retry, and a refilter that lets rejected samples in.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.dataset import about
from pipelines.dataset.diff import compare
from pipelines.dataset.garbage import collect_garbage, prune_versions
from pipelines.dataset.refilter import refilter
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest, read_version
from pipelines.plan.retry import plan_retry
from pipelines.store.storage import Storage
from tests.local_job import LocalJob, job_in

KEPT = Path(__file__).parent / "output_of_format_2"
FILTER = {"filters": [{"kind": "depth_range", "min_span": 0.1}]}


@pytest.fixture
def job(tmp_path: Path) -> LocalJob:
    """The job of a copy of that output, with one file of new prompts; the files of its samples are gone."""
    shutil.copytree(KEPT, tmp_path / "out")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "new.txt").write_text("a table\nFLAT\n")
    return job_in(tmp_path, input={"uri": str(tmp_path / "in"), "samples_per_row": 2}, quality=FILTER)


def test_it_is_read(job: LocalJob) -> None:
    storage = job.context.storage
    about.refresh(storage, job.ledger)
    assert validate(storage.uri).problems == []
    status = read_status(storage.uri)
    assert (status.latest.number, status.committed_samples, status.is_complete) == (4, 16, True)
    assert (compare(storage.uri, 3, 4).same, len(compare(storage.uri, 3, 4).changed)) == (12, 4)
    assert collect_garbage(storage.uri, 0).objects == ()
    assert [json.loads((KEPT / f"_versions/00000{n}/version.json").read_text())["format"] for n in (1, 4)] == [2, 2]


def test_it_goes_on(job: LocalJob) -> None:
    storage = job.context.storage
    before = read_latest(storage)
    version, is_new = job.publish()
    assert (version.number, is_new) == (4, False)
    assert [info.path for info in storage.list("_versions/segments")] == [], "an unpublished segment is dropped"
    version = job.complete()
    assert (version.number, version.has_segments) == (5, True)
    assert version.counts == {"kept": before.counts["kept"] + 4, "rejected": 0, "quarantined": 2}
    assert set(before.files) <= set(version.files)
    assert validate(storage.uri).problems == []
    assert job.publish()[1] is False


def test_it_is_refiltered_retried_and_pruned(job: LocalJob) -> None:
    storage = job.context.storage
    strict = refilter(storage.uri, ["quality.filters.0.min_span=0.1"]).version
    assert strict.counts == read_version(storage, 3).counts
    assert plan_retry(storage.uri, ["rejected"]).counts == {"rejected": 4}
    job.ledger = Ledger(storage)
    version = job.complete()
    assert version.counts["quarantined"] == 6, "the files of retried samples are gone"
    assert validate(storage.uri).problems == []
    prune_versions(Storage(storage.uri), 1, 0)
    about.refresh(storage, job.ledger)
    assert validate(storage.uri).problems == []
    assert collect_garbage(storage.uri, 0).objects == ()
