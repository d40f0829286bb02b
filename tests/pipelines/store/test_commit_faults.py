"""Lost and misleading answers to a commit, on a real S3 server behind the fault proxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jointdit.errors import JointDiTError
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.entries import Commit
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import version_numbers
from pipelines.run.rounds import pending_shards
from pipelines.stages.finish import Receipt
from pipelines.store.errors import CommitFailed, CommitUnknown
from pipelines.store.storage import AlreadyExists, Storage
from tests.chaos.proxy import FaultProxy
from tests.local_job import LocalJob

LANDED = ["lost-response", "error-after-write"]


@pytest.fixture
def proxy(s3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that makes only what a test asks for; the environment points to it."""
    with FaultProxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def job(s3, proxy: FaultProxy, make_job) -> LocalJob:
    job = make_job(["a", "b"], output={"uri": s3.make_bucket() + "/out"})
    job.plan()
    return job


def commit_of(job: LocalJob) -> Commit:
    found = Ledger(job.context.storage).read_commit(job.ledger.planned()[0].shard.id)
    assert found is not None
    return found


def run(job: LocalJob) -> Receipt:
    (entry,) = job.ledger.planned()
    return job.run_shard(entry)


def test_a_commit_is_read_with_one_request(job: LocalJob, proxy: FaultProxy) -> None:
    run(job)
    proxy.inject("reset", "HEAD", "_commits/", times=100)
    assert commit_of(job).samples
    assert not proxy.counts["reset"]


@pytest.mark.parametrize(("fault", "times"), [*((fault, 1) for fault in LANDED), ("lost-response", 12)])
def test_a_commit_that_landed_without_an_answer_is_ours(
    job: LocalJob, proxy: FaultProxy, fault: str, times: int
) -> None:
    """12: oftener than the client tries by itself."""
    proxy.inject(fault, "PUT", "_commits/", times=times)
    receipt = run(job)
    assert receipt.won
    assert proxy.counts[fault] >= 1
    assert commit_of(job).token == receipt.token
    assert [each.path for each in job.context.storage.list("data")] == [commit_of(job).objects[0].path]
    job.publish()
    assert validate(job.context.storage.uri).problems == []


@pytest.mark.parametrize("fault", LANDED)
def test_a_rival_that_was_first_is_not_taken_for_us(job: LocalJob, proxy: FaultProxy, fault: str) -> None:
    first = run(job)
    proxy.inject(fault, "PUT", "_commits/", times=2)
    second = run(job)
    assert (first.won, second.won) == (True, False)
    assert commit_of(job).token == first.token == second.token
    assert len(job.context.storage.list("data")) == 1, "the loser threw its objects away, and no other"


def test_a_commit_that_cannot_be_read_back_is_found_by_the_next_attempt(job: LocalJob, proxy: FaultProxy) -> None:
    proxy.inject("lost-response", "PUT", "_commits/", times=20)
    proxy.inject("reset", "GET", "_commits/", times=100)
    with pytest.raises(CommitUnknown, match="it may have been created, and cannot be read back"):
        run(job)
    proxy.forget()
    landed = commit_of(job)
    second = run(job)
    assert (second.won, second.token) == (False, landed.token)
    assert [each.path for each in job.context.storage.list("data")] == [landed.objects[0].path]
    job.publish()
    assert validate(job.context.storage.uri).problems == []


def test_a_commit_that_never_landed_is_told_from_one_that_may_have(
    job: LocalJob, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.store.storage.CREATE_ATTEMPTS", 1)
    proxy.inject("slow-down", "PUT", "_commits/", times=100)
    with pytest.raises(CommitFailed, match="the store refused to create it"):
        run(job)
    assert [entry.shard.id for entry in pending_shards(job.ledger)] == [job.ledger.planned()[0].shard.id]


@pytest.mark.parametrize("part", ["segments/", "version.json"])
def test_a_version_whose_answer_is_lost_is_published_once(job: LocalJob, proxy: FaultProxy, part: str) -> None:
    run(job)
    proxy.inject("lost-response", "PUT", part, times=2)
    version, is_new = job.publish()
    assert proxy.counts["lost-response"] >= 1
    assert (version.number, is_new) == (1, True)
    assert job.publish() == (version, False)
    assert version_numbers(job.context.storage) == [1]
    assert validate(job.context.storage.uri).problems == []


def test_a_plan_whose_answer_is_lost_is_planned_once(s3, proxy: FaultProxy, make_job) -> None:
    job = make_job(["a", "b"], output={"uri": s3.make_bucket() + "/out"})
    proxy.inject("lost-response", "PUT", "_plan/")
    job.plan()
    job.plan()
    assert proxy.counts["lost-response"] == 1
    assert job.ledger.plan_numbers() == [1]
    assert job.complete().counts["kept"] == 2


@pytest.mark.slow
def test_a_probe_whose_answer_is_lost_leaves_nothing(s3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.store.storage.CREATE_ATTEMPTS", 1)
    storage = Storage(s3.make_bucket() + "/out")
    proxy.inject("lost-response", "PUT", "_probe/", times=20)
    proxy.inject("reset", "GET", "_probe/", times=100)
    with pytest.raises(JointDiTError, match="did not answer as it should"):
        storage.probe()
    assert proxy.counts["lost-response"] > 0
    proxy.forget()
    assert storage.list() == []


def test_opening_with_xb_overwrites_where_nothing_is_written_and_create_bytes_does_not(s3) -> None:
    """Why nothing here is created by opening, and why an empty object is refused."""
    storage = Storage(s3.make_bucket() + "/trap")
    storage.create_bytes("commit.json", b"the winner")
    with storage.fs.open(storage.path("commit.json"), "xb"):
        pass
    assert storage.read_bytes("commit.json") == b"", "s3fs sends no condition for zero bytes"
    storage.create_bytes("other.json", b"the winner")
    with pytest.raises(AssertionError, match="an empty object does not identify its writer"):
        storage.create_bytes("other.json", b"")
    with pytest.raises(AlreadyExists):
        storage.create_bytes("other.json", b"x")
    assert storage.read_bytes("other.json") == b"the winner"


def test_a_failed_condition_that_comes_as_errno_22_is_a_lost_race(s3) -> None:
    """This server's answer, which s3fs knows no better name for: neither a fault nor a reason to try again."""
    storage = Storage(s3.make_bucket() + "/trap")
    storage.create_bytes("commit.json", b"the winner")
    with pytest.raises(OSError, match="pre-conditions") as caught:
        storage.fs.pipe_file(storage.path("commit.json"), b"a rival", mode="create")
    assert caught.value.errno == 22
    assert not isinstance(caught.value, FileExistsError)
    with pytest.raises(AlreadyExists):
        storage.create_bytes("commit.json", b"a rival")
