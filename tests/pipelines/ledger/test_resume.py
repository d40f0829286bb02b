"""What is left to make, with a roll-up of commits that may be missing, outdated or damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.dataset.publish import publish
from pipelines.engine.progress import Progress
from pipelines.ledger import resume
from pipelines.ledger.entries import Unfinished
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.resume import ROLL_UP, read_remaining, read_roll_up, remember_commits
from pipelines.run.job import generate_and_publish
from tests.local_job import LocalJob

SHARDS = 6


class Unlisted(Ledger):
    """Fails where commits are listed."""

    def committed(self):
        raise AssertionError("the commits were listed")


@pytest.fixture
def job(make_job, monkeypatch: pytest.MonkeyPatch) -> LocalJob:
    """A job with all but its last shard committed; three commits are enough for a roll-up."""
    monkeypatch.setattr(resume, "ROLL_UP_FROM", 3)
    monkeypatch.setattr(resume, "LISTED_AT_ONCE", 1)
    job = make_job([f"prompt {number}" for number in range(SHARDS)], output={"shard_rows": 1})
    job.plan()
    for entry in job.ledger.planned()[:-1]:
        job.run_shard(entry)
    return job


def left(job: LocalJob, ledger: type[Ledger] = Ledger) -> tuple[list[int], int]:
    found = read_remaining(ledger(job.context.storage))
    return [entry.position for entry in found.pending], found.committed


def test_the_second_driver_need_not_list_what_the_first_has_listed(job: LocalJob) -> None:
    with pytest.raises(AssertionError, match="were listed"):
        left(job, Unlisted)
    assert left(job) == ([SHARDS - 1], SHARDS - 1)
    assert left(job, Unlisted) == ([SHARDS - 1], SHARDS - 1)
    assert set(read_roll_up(job.context.storage).to_pylist()) == job.ledger.committed()


def test_a_commit_that_the_roll_up_does_not_know_is_found(job: LocalJob) -> None:
    left(job)
    job.run_shard(job.ledger.planned()[-1])
    assert left(job, Unlisted) == ([], SHARDS)


def test_a_run_lists_the_commits_once(job: LocalJob) -> None:
    """Each round listed all of them again."""
    ledger = Ledger(job.context.storage)
    assert [entry.position for entry in read_remaining(ledger).pending] == [SHARDS - 1]
    ledger.storage.delete(ROLL_UP)
    ledger.committed = Unlisted.committed.__get__(ledger)
    job.run_shard(ledger.planned()[-1])
    assert read_remaining(ledger).pending == []
    assert read_remaining(ledger).committed == SHARDS


def test_commits_that_a_run_saw_need_no_request(job: LocalJob, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(job.context.storage)
    (last,) = read_remaining(ledger).pending
    job.run_shard(last)
    remember_commits(ledger, pa.array([last.shard.id]))
    monkeypatch.setattr(Ledger, "is_committed", lambda *_: pytest.fail("a known commit was looked for"))
    assert (read_remaining(ledger).pending, read_remaining(ledger).committed) == ([], SHARDS)


@pytest.mark.parametrize("damage", [b"", b"no Parquet", b"cut", b"other"], ids=["empty", "text", "cut", "columns"])
def test_a_damaged_roll_up_costs_a_listing_and_nothing_else(
    job: LocalJob, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    storage = job.context.storage
    left(job)
    whole = storage.read_bytes(ROLL_UP)
    plan = storage.read_bytes("_plan/000001.parquet")  # a Parquet file of other columns
    Path(storage.path(ROLL_UP)).write_bytes({b"cut": whole[: len(whole) // 2], b"other": plan}.get(damage, damage))
    with caplog.at_level(logging.WARNING):
        assert left(job) == ([SHARDS - 1], SHARDS - 1)
    assert "costs one listing" in caplog.text
    assert storage.read_bytes(ROLL_UP) == whole, "the listing was kept in its place"


def test_a_roll_up_that_names_a_commit_which_is_gone_is_dropped_when_a_version_is_published(make_job, monkeypatch):
    monkeypatch.setattr(resume, "ROLL_UP_FROM", 1)
    job = make_job([f"prompt {number}" for number in range(SHARDS)], output={"shard_rows": 1})
    folder, storage = Path(job.context.spec.input.uri[0]), job.context.storage
    job.complete()
    folder.write_text("")  # its new version has one shard without rows, which needs no worker
    job.plan()
    job.run()
    left(job)
    (emptied,) = (entry for entry in job.ledger.planned() if not entry.samples)
    storage.delete(f"_commits/{emptied.shard.id}.json")
    assert left(job)[0] == [], "the roll-up is believed"
    with pytest.raises(Unfinished):
        publish(storage, job.ledger, job.context.spec)
    version, is_new = generate_and_publish(job.context, Ledger(storage), Progress())
    assert (version.number, is_new) == (2, True)
    assert job.ledger.is_committed(emptied.shard.id)
