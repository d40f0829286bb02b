from __future__ import annotations

from pathlib import Path

import pytest

from jointdit.errors import StoreError
from pipelines.run import pending_shards
from pipelines.status import read_status


def test_a_job_under_way(make_job, tmp_path: Path) -> None:
    quality = {"filters": [{"kind": "depth_range"}], "max_quarantined_fraction": 1.0}
    job = make_job(["a", "FLAT", "", "b", "c", "d"], quality=quality, input={"samples_per_row": 2})
    job.plan()
    uri = job.context.storage.uri
    status = read_status(uri)
    assert (status.name, status.task, status.plans) == ("out", "joint", 1)
    assert (status.shards, status.committed_shards, status.samples, status.committed_samples) == (2, 0, 12, 0)
    assert not status.is_complete
    first, second = pending_shards(job.ledger)
    job.run_shard(first)
    job.ledger.record_crash(second.shard.id, {"stage": "read"})
    status = read_status(uri)
    assert (status.committed_shards, status.committed_samples) == (1, 8)
    assert status.counts == {"kept": 4, "rejected": 2, "quarantined": 2}
    assert status.crashes == {second.shard.id: 1}
    assert status.latest is None
    job.run_shard(second)
    version, _ = job.publish()
    status = read_status(uri)
    assert status.latest == version
    assert status.is_complete
    (tmp_path / "prompts.txt").write_text("another\n")
    job.plan()
    status = read_status(uri)
    assert (status.shards, status.samples, status.committed_samples) == (1, 2, 0)  # the old version is superseded
    assert not status.is_complete


def test_no_job_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no job: there is no _job.json"):
        read_status(str(tmp_path))


def test_a_missing_bucket_is_one_sentence(s3) -> None:
    with pytest.raises(StoreError, match="the bucket no-such-bucket does not exist"):
        read_status("s3://no-such-bucket/out")
