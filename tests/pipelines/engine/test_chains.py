"""The tasks of a chain against a store that never answers: a real S3 server behind a proxy that lets requests wait."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pipelines.engine import chains
from pipelines.engine.deadline import DeadlineExceeded
from pipelines.run.rounds import pending_shards
from pipelines.stages.read import NO_ISOLATION, read_shard
from pipelines.store.storage import Storage
from tests.chaos.proxy import FaultProxy
from tests.stand_in import StandInWorker

STALL_SECONDS = 1.0
WAIT_SECONDS = 30.0


@pytest.fixture
def proxy(s3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint, seed=4, latency_seconds=WAIT_SECONDS) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def job(make_job, s3, proxy: FaultProxy):
    bucket = s3.make_bucket()
    Storage(bucket).write_bytes("in/prompts.txt", b"a\nb\n")
    sections = {"input": {"uri": f"{bucket}/in/prompts.txt"}, "output": {"uri": f"{bucket}/out"}}
    job = make_job(resources={"stall_seconds": STALL_SECONDS}, **sections)
    job.plan()
    return job


def ends_at_its_deadline(call) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="took longer than 1 seconds"):
        call()
    assert time.monotonic() - started < WAIT_SECONDS / 3


def test_a_read_of_a_store_that_never_answers_ends_at_its_deadline(job, proxy: FaultProxy) -> None:
    (entry,) = pending_shards(job.ledger)
    proxy.inject("latency", part="prompts.txt", times=20)
    ends_at_its_deadline(lambda: chains._read(job.context, entry, NO_ISOLATION))
    ends_at_its_deadline(lambda: chains._try_read(job.context, entry, 0, 0, 2))


@pytest.mark.parametrize("part", ["data/", "_commits/"])
def test_a_finish_on_a_store_that_never_answers_ends_at_its_deadline(job, proxy: FaultProxy, part: str) -> None:
    (entry,) = pending_shards(job.ledger)
    worker = StandInWorker(job.context, "cpu", 1)
    worker.set_up()
    rows, parts = read_shard(job.context, entry)
    results = [worker.generate(part)[0] for part in parts]
    proxy.inject("latency", "PUT", part, times=20)
    ends_at_its_deadline(lambda: chains._finish(job.context, entry, frozenset(), "run", rows, *results))
    assert job.ledger.committed() == set()
