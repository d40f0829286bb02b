"""Partial versions: what is committed is published, and later versions go on from it."""

from __future__ import annotations

from pipelines.dataset.publish import publish_committed
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import Version, read_outcomes
from pipelines.run.rounds import pending_shards
from tests.local_job import LocalJob


def publish_now(job: LocalJob) -> Version:
    """Publish what is committed, check that the version is new and whole in itself, and return it."""
    version, is_new = publish_committed(job.context.storage, job.ledger)
    assert version is not None
    assert is_new
    assert problems(job) == []
    return version


def problems(job: LocalJob) -> list[str]:
    found = validate(job.context.storage.uri).problems
    return [problem for problem in found if not problem.startswith("README.md")]


def run_some(job: LocalJob, count: int) -> None:
    for entry in pending_shards(job.ledger)[:count]:
        job.run_shard(entry)


def ids(job: LocalJob, version: Version) -> list[str]:
    return read_outcomes(job.context.storage, version)["id"].to_pylist()


def content(job: LocalJob, version: Version) -> list[tuple]:
    table = read_outcomes(job.context.storage, version)
    columns = (table[name].to_pylist() for name in ("id", "uri", "etag", "position", "shard", "outcome", "reasons"))
    return sorted((*row[:-1], tuple(row[-1] or ())) for row in zip(*columns, strict=True))


def test_committed_shards_are_published_and_a_later_version_goes_on(make_job) -> None:
    job = make_job([f"p{n}" for n in range(12)])
    job.plan()
    assert publish_committed(job.context.storage, job.ledger) == (None, False), "no sample is committed"
    run_some(job, 1)
    first = publish_now(job)
    assert (first.number, first.is_partial, first.left_out, first.counts["kept"]) == (1, True, 8, 4)
    assert publish_committed(job.context.storage, job.ledger) == (first, False), "nothing new is committed"
    run_some(job, 1)
    second = publish_now(job)
    assert (second.number, second.is_partial, second.left_out, second.counts["kept"]) == (2, True, 4, 8)
    assert second.segments[: len(first.segments)] == first.segments, "what is new alone is written"
    job.run()
    third, is_new = job.publish()
    assert (third.number, is_new, third.is_partial, third.left_out, third.counts["kept"]) == (3, True, False, 0, 12)
    assert problems(job) == []
    assert job.publish() == (third, False)
