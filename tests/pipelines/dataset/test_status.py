from __future__ import annotations

from pathlib import Path

import pytest

from jointdit.errors import StoreError
from pipelines.dataset.status import StatusReader, read_status
from pipelines.ledger.lease import Heartbeat
from pipelines.run.rounds import pending_shards
from pipelines.store.storage import Storage


class Clock:
    """The watcher's own."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


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
    assert status.is_published
    (tmp_path / "prompts.txt").write_text("another\n")
    job.plan()
    status = read_status(uri)
    assert (status.shards, status.samples, status.committed_samples) == (1, 2, 0)  # the old version is superseded
    assert not status.is_complete
    job.run()
    status = read_status(uri)
    assert (status.committed_shards, status.is_published, status.is_complete) == (1, False, False)
    job.publish()
    assert read_status(uri).is_complete


def test_the_rows_of_a_file_that_moved_are_counted_once(make_job, tmp_path: Path) -> None:
    """By row id, as in the published version, also where the file that moved is not made whole yet."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.txt").write_text("one\n\nthree\n")
    make_job(input={"uri": str(tmp_path / "in")}).complete()
    (tmp_path / "in").rename(tmp_path / "moved")
    (tmp_path / "moved" / "c.txt").write_text("new\n")
    job = make_job(input={"uri": str(tmp_path / "moved")}, output={"shard_rows": 3})
    reader = StatusReader(job.context.storage.uri)
    job.plan()
    assert reader.read().counts == {"kept": 4, "rejected": 0, "quarantined": 2}
    first, *others = pending_shards(job.ledger)
    job.run_shard(first)
    status = reader.read()
    assert (status.committed_samples, status.counts) == (6, {"kept": 4, "rejected": 0, "quarantined": 2})
    for entry in others:
        job.run_shard(entry)
    version, _ = job.publish()
    status = reader.read()
    assert status.counts == version.counts == {"kept": 5, "rejected": 0, "quarantined": 2}
    assert (status.samples, status.committed_samples, status.is_complete) == (7, 7, True)
    assert read_status(job.context.storage.uri).counts == version.counts


def test_a_reader_reads_what_cannot_change_once_and_measures_the_rate(make_job) -> None:
    clock = Clock()
    job = make_job([f"prompt {n}" for n in range(8)])
    job.plan()
    reader = StatusReader(job.context.storage.uri, clock=clock)
    assert reader.read().committed_samples == 0
    assert reader.rate() is None
    first, second = pending_shards(job.ledger)
    job.run_shard(first)
    clock.now += 2
    assert reader.read().committed_samples == 4
    assert reader.rate() == 2.0
    job.context.storage.write_bytes(f"_commits/{first.shard.id}.json", b"{")  # it must not look at it again
    job.run_shard(second)
    clock.now += 2
    assert reader.read().counts["kept"] == 8
    assert reader.rate() == 2.0


def test_crash_records_are_counted_without_reading_them(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a job read all of them again, one request each."""
    job = make_job(["a"])
    job.plan()
    reader, (entry,) = StatusReader(job.context.storage.uri), pending_shards(job.ledger)
    names: list[str] = []
    read = Storage.read_bytes
    monkeypatch.setattr(Storage, "read_bytes", lambda self, name: (names.append(name), read(self, name))[1])
    for number in range(1, 4):
        job.ledger.record_crash(entry.shard.id, {"stage": "read"})
        assert reader.read().crashes == {entry.shard.id: number}
    assert [name for name in names if name.startswith("_crashes")] == []


def test_the_lease_of_a_driver_is_shown(make_job) -> None:
    clock = Clock()
    job = make_job(["a"])
    job.plan()
    driver = Heartbeat(job.context.storage)
    driver._beat()
    reader = StatusReader(job.context.storage.uri, clock=clock)
    assert [state for _, state in reader.read().leases] == ["unknown"]
    driver._beat()
    assert [state for _, state in reader.read().leases] == ["live"]
    clock.now += 61
    assert [state for _, state in reader.read().leases] == ["stale"]


def test_no_job_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no job: there is no _job.json"):
        read_status(str(tmp_path))


def test_a_missing_bucket_is_one_sentence(s3) -> None:
    with pytest.raises(StoreError, match="the bucket no-such-bucket does not exist"):
        read_status("s3://no-such-bucket/out")
