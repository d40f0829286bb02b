"""Publication at intervals: what it says, what it keeps, and that a failure does not stop the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from jointdit.errors import StoreError
from pipelines.dataset import card
from pipelines.engine.progress import Progress
from pipelines.ledger.versions import read_latest, version_numbers
from pipelines.run import periodic
from pipelines.run.periodic import PeriodicPublisher
from pipelines.run.rounds import pending_shards
from tests.local_job import LocalJob


class Notes(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.has_note = threading.Event()

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self.has_note.set()


def planned(make_job: Callable[..., LocalJob], **output: Any) -> LocalJob:
    job = make_job([f"p{n}" for n in range(6)], output={"shard_rows": 1, **output})
    job.plan()
    return job


def test_what_is_new_is_published_described_and_pruned(make_job) -> None:
    job, progress = planned(make_job, publish_every="1h", retain_versions=2), Notes()
    storage = job.context.storage
    publisher = PeriodicPublisher(storage, job.context.spec, progress)
    publisher.publish()
    assert progress.notes == []
    for count in (1, 2, 3):
        job.run_shard(pending_shards(job.ledger)[0])
        publisher.publish()
        publisher.publish()
        left = f"{6 - count} planned samples are left out"
        says = f"version {count} published while the run goes on: {count} kept, 0 rejected, 0 quarantined; {left}."
        assert progress.notes[-1] == says
        assert len(progress.notes) == count, "nothing new is not published"
        assert card.is_about(storage, read_latest(storage))
    assert version_numbers(storage) == [2, 3]


def test_it_publishes_each_time_the_interval_has_passed(make_job) -> None:
    job, progress = planned(make_job, publish_every="1s"), Notes()
    job.run_shard(pending_shards(job.ledger)[0])
    with PeriodicPublisher(job.context.storage, job.context.spec, progress):
        assert progress.has_note.wait(60)
    assert progress.notes[0].startswith("version 1 published while the run goes on")


def test_a_failure_is_said_and_tried_again(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    job, progress = planned(make_job, publish_every="1s"), Notes()
    again = threading.Event()

    def fail(*_: object) -> None:
        if progress.notes:
            again.set()
        raise StoreError("the store is down.")

    monkeypatch.setattr(periodic, "publish_committed", fail)
    with PeriodicPublisher(job.context.storage, job.context.spec, progress):
        assert again.wait(60)
    says = "no version was published while the run goes on; it is tried again after 1s: the store is down."
    assert progress.notes[0] == says


def test_without_an_interval_there_is_no_thread(make_job) -> None:
    job, before = planned(make_job), threading.active_count()
    with PeriodicPublisher(job.context.storage, job.context.spec, Notes()):
        assert threading.active_count() == before
