"""Reading the objects of a dataset: progress, interruption, resume, and what is read again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipelines.dataset.validation.objects import (
    BATCH_BYTES,
    BATCH_OBJECTS,
    Batch,
    CheckBatch,
    Checking,
    Checks,
    Progressed,
    batches,
    by_threads,
)
from pipelines.dataset.validation.passed import Passed, state_file
from pipelines.dataset.validation.validate import Validation, validate
from pipelines.ledger.entries import StoredObject
from tests.local_job import LocalJob


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOINTDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def job(make_job) -> LocalJob:
    """Six shards, each with a table and a point cloud."""
    job = make_job([f"p{n}" for n in range(6)], output={"shard_rows": 1, "points": "ply"})
    job.complete()
    return job


class Reader:
    """Checks on this thread, and remembers what was read; it stops before the object of number `most`."""

    def __init__(self, most: int = 1000) -> None:
        self.read: list[str] = []
        self.states: list[tuple[int, int]] = []
        self.most = most

    def map(self, check: CheckBatch, all_batches: Iterable[Batch]) -> Checks:
        for stored in (stored for batch in all_batches for stored in batch):
            if len(self.read) == self.most:
                raise KeyboardInterrupt
            self.read.append(stored.path)
            yield (stored,), check((stored,))

    def note(self, state: Progressed) -> None:
        self.states.append((state.objects, state.bytes))

    def validate(self, job: LocalJob, is_resumed: bool = False) -> Validation:
        with Passed(job.context.storage.uri, is_resumed) as passed:
            return validate(job.context.storage.uri, how=Checking(self.map, passed, self.note))


def test_an_interrupted_check_is_resumed_where_it_stopped(job: LocalJob) -> None:
    first, second = Reader(most=5), Reader()
    with pytest.raises(KeyboardInterrupt):
        first.validate(job)
    resumed, whole = second.validate(job, is_resumed=True), validate(job.context.storage.uri)
    assert whole.files == 12
    assert sorted([*first.read, *second.read]) == sorted(set(first.read) | set(second.read))
    assert (len(first.read), len(second.read)) == (5, 7)
    assert resumed == whole, "the result is that of one check"
    assert second.states[-1] == (12, whole.bytes)
    assert second.states == sorted(second.states)
    third = Reader()
    assert third.validate(job, is_resumed=True) == whole
    assert third.read == []


def test_without_a_resume_everything_is_read_and_what_passed_before_is_forgotten(job: LocalJob) -> None:
    Reader().validate(job)
    again = Reader(most=2)
    with pytest.raises(KeyboardInterrupt):
        again.validate(job)
    rest = Reader()
    rest.validate(job, is_resumed=True)
    assert len(rest.read) == 10


def test_a_resume_reads_what_is_new_and_finds_what_is_gone_or_cut(job: LocalJob, make_job) -> None:
    Reader().validate(job)
    make_job([f"p{n}" for n in range(8)], output={"shard_rows": 1, "points": "ply"}).complete()
    new = Reader()
    assert new.validate(job, is_resumed=True).problems == []
    assert len(new.read) == 4, "two rows are new, with a table and a cloud each"
    tables = sorted(Path(job.context.storage.path("data")).iterdir())
    tables[0].unlink()
    tables[1].write_bytes(tables[1].read_bytes()[:-1])
    rest = Reader()
    problems = rest.validate(job, is_resumed=True).problems
    assert rest.read == []
    assert sum("and missing" in problem for problem in problems) == 1
    assert sum("its commit says" in problem for problem in problems) == 1


def test_what_did_not_pass_is_read_again(job: LocalJob) -> None:
    table = sorted(Path(job.context.storage.path("data")).iterdir())[0]
    good = table.read_bytes()
    table.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert any("SHA-256" in problem for problem in Reader().validate(job).problems)
    table.write_bytes(good)
    rest = Reader()
    assert rest.validate(job, is_resumed=True).problems == []
    assert rest.read == [f"data/{table.name}"]


def test_a_state_that_cannot_be_kept_is_said_and_the_check_goes_on(job: LocalJob, cache: Path, caplog) -> None:
    state = state_file(job.context.storage.uri)
    for prepare in (lambda: cache.write_text("a file"), lambda: (state.parent.mkdir(parents=True), _damage(state))):
        prepare()
        reader = Reader()
        with caplog.at_level(logging.WARNING):
            assert reader.validate(job, is_resumed=True).problems == []
        assert "so this check cannot be resumed" in caplog.text
        assert len(reader.read) == 12
        caplog.clear()
        if cache.is_file():
            cache.unlink()


def _damage(state: Path) -> None:
    state.write_bytes(b"no database" * 1000)


def test_threads_check_every_object_once(job: LocalJob) -> None:
    seen: list[str] = []

    def watched(check: CheckBatch, all_batches: Iterable[Batch]) -> Checks:
        for batch, found in by_threads(check, all_batches):
            seen.extend(stored.path for stored in batch)
            yield batch, found

    found = validate(job.context.storage.uri, how=Checking(watched))
    assert len(seen) == len(set(seen)) == found.files == 12


def test_batches_are_limited_by_bytes_and_by_objects() -> None:
    sizes = [BATCH_BYTES + 1, *[BATCH_BYTES // 2] * 3, *[1] * (BATCH_OBJECTS + 1)]
    objects = [StoredObject(str(n), size, "", 1, "kept") for n, size in enumerate(sizes)]
    found = list(batches(objects))
    assert [stored for batch in found for stored in batch] == objects
    assert [len(batch) for batch in found] == [1, 2, BATCH_OBJECTS, 2]


def test_what_passed_is_written_while_the_check_goes_on(job: LocalJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a check that is killed can be resumed too."""
    monkeypatch.setattr("pipelines.dataset.validation.passed.WRITE_SECONDS", 0.0)
    uri, rest = job.context.storage.uri, Reader()
    with Passed(uri, is_resumed=False) as passed:
        with pytest.raises(KeyboardInterrupt):
            validate(uri, how=Checking(Reader(most=5).map, passed))
        assert rest.validate(job, is_resumed=True).problems == []
    assert len(rest.read) == 7
