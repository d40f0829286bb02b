"""Partial versions: what is committed is published, and later versions go on from it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.garbage import collect_garbage, prune_versions
from pipelines.dataset.publish import publish_committed
from pipelines.dataset.refilter import refilter
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import Version, read_outcomes
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.plan.retry import plan_retry
from pipelines.run.rounds import pending_shards
from tests.chaos.operations import Varied
from tests.local_job import LocalJob, input_folder, job_in

FILTERS = [{"kind": "depth_range", "min_span": 0.1}]
BEST = {"k": 1, "by": "depth_span", "order": "highest"}


def publish_now(job: LocalJob) -> Version:
    """Publish what is committed, check that the version is new and whole in itself, and return it."""
    version, is_new = publish_committed(job.context.storage, job.ledger, job.context.spec)
    assert version is not None
    assert is_new
    assert problems(job) == []
    return version


def problems(job: LocalJob) -> list[str]:
    found = validate(job.context.storage.uri, quick=True).problems
    return [problem for problem in found if not problem.startswith("README.md")]


def run_some(job: LocalJob, count: int, of: str = "") -> None:
    """Run the first pending shards, of files whose address ends with `of`."""
    for entry in [e for e in pending_shards(job.ledger) if e.shard.spans[0].uri.endswith(of)][:count]:
        job.run_shard(entry)


def rows(job: LocalJob, version: Version) -> set[tuple[str, str]]:
    """Return (id, etag) of all samples of a version."""
    table = read_outcomes(job.context.storage, version)
    return set(zip(table["id"].to_pylist(), table["etag"].to_pylist(), strict=True))


def content(job: LocalJob, version: Version) -> list[tuple[Any, ...]]:
    table = read_outcomes(job.context.storage, version)
    columns = (table[name].to_pylist() for name in ("id", "uri", "etag", "position", "outcome", "reasons"))
    return sorted((*row[:-1], tuple(row[-1] or ())) for row in zip(*columns, strict=True))


@pytest.fixture
def folder_job(tmp_path: Path) -> LocalJob:
    """Two files in shards of 4 rows: a with 8 rows, b with 6."""
    folder = input_folder(tmp_path, a="".join(f"a{n}\n" for n in range(8)), b="".join(f"b{n}\n" for n in range(6)))
    return job_in(tmp_path, input={"uri": str(folder)})


def test_committed_shards_are_published_and_a_later_version_goes_on(make_job) -> None:
    job = make_job([f"p{n}" for n in range(12)])
    job.plan()
    assert publish_committed(job.context.storage, job.ledger) == (None, False), "no sample is committed"
    run_some(job, 1)
    first = publish_now(job)
    assert (first.number, first.is_partial, first.left_out, first.counts["kept"]) == (1, True, 8, 4)
    assert publish_committed(job.context.storage, job.ledger) == (first, False), "nothing new is committed"
    status = read_status(job.context.storage.uri)
    assert (status.committed_samples, status.samples, status.is_published) == (4, 12, False)
    run_some(job, 1)
    second = publish_now(job)
    assert (second.number, second.is_partial, second.left_out, second.counts["kept"]) == (2, True, 4, 8)
    assert second.segments[: len(first.segments)] == first.segments, "what is new alone is written"
    job.run()
    third, is_new = job.publish()
    assert (third.number, is_new, third.is_partial, third.left_out, third.counts["kept"]) == (3, True, False, 0, 12)
    assert problems(job) == []
    assert job.publish() == (third, False)


def test_only_new_commits_are_read(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job([f"p{n}" for n in range(16)])
    job.plan()
    run_some(job, 3)
    publish_now(job)
    run_some(job, 1)
    seen: list[str] = []
    read = job.ledger.read_commit
    monkeypatch.setattr(job.ledger, "read_commit", lambda shard: (seen.append(shard), read(shard))[1])
    publish_committed(job.context.storage, job.ledger)
    assert len(seen) == 1


def test_what_is_all_committed_is_a_whole_version(make_job) -> None:
    job = make_job(["a", "b"])
    job.plan()
    job.run()
    version = publish_now(job)
    assert (version.is_partial, version.left_out) == (False, 0)
    assert job.publish() == (version, False)


def test_a_changed_file_counts_in_its_old_version_until_the_new_one_is_whole(
    folder_job: LocalJob, tmp_path: Path
) -> None:
    first = folder_job.complete()
    old = rows(folder_job, first)
    (tmp_path / "in" / "a.txt").write_text("".join(f"new {n}\n" for n in range(12)))
    (tmp_path / "in" / "c.txt").write_text("c0\n")
    folder_job.plan()
    run_some(folder_job, 2, of="a.txt")
    assert publish_committed(folder_job.context.storage, folder_job.ledger) == (first, False), "nothing counts yet"
    run_some(folder_job, 1, of="c.txt")
    second = publish_now(folder_job)
    assert {row for row in rows(folder_job, second) if row[0].startswith(("a", "b"))} == old
    assert (second.is_partial, second.left_out, second.counts["kept"]) == (True, 12, 15)
    run_some(folder_job, 1, of="a.txt")
    third = publish_now(folder_job)
    assert (third.is_partial, third.counts["kept"]) == (False, 12 + 6 + 1)
    assert len({etag for identifier, etag in rows(folder_job, third) if identifier.startswith("a")}) == 1
    assert not {row for row in rows(folder_job, third) if row[0].startswith("a")} & old
    assert folder_job.publish() == (third, False)


def test_without_a_whole_version_the_latest_one_counts(folder_job: LocalJob, tmp_path: Path) -> None:
    folder_job.plan()
    run_some(folder_job, 1, of="a.txt")
    first = publish_now(folder_job)
    (tmp_path / "in" / "a.txt").write_text("".join(f"new {n}\n" for n in range(12)))
    folder_job.plan()
    run_some(folder_job, 1, of="a.txt")
    second = publish_now(folder_job)
    assert (second.counts["kept"], second.left_out) == (4, 8 + 6)
    assert not rows(folder_job, first) & rows(folder_job, second)


def test_an_earlier_attempt_counts_until_its_retry_is_committed(make_job) -> None:
    job = make_job(["a", "NAN", "b", "NAN"], output={"shard_rows": 1})
    first = job.complete()
    plan_retry(job.context.storage.uri, ["quarantined"])
    assert publish_committed(job.context.storage, job.ledger) == (first, False)
    retried, waiting = pending_shards(job.ledger)
    job.run_shard(retried)
    second = publish_now(job)
    shards = dict(
        zip(*(read_outcomes(job.context.storage, second)[name].to_pylist() for name in ("id", "shard")), strict=True)
    )
    assert (second.is_partial, second.left_out, second.counts) == (True, 1, first.counts)
    assert shards["prompts.txt:1/0"] == retried.shard.id
    assert shards["prompts.txt:3/0"] == job.ledger.planned()[3].shard.id
    job.run_shard(waiting)
    assert not publish_now(job).is_partial


def test_decisions_of_a_partial_version_stand(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal images the one that was published first stays, although another one is earlier in the plan."""
    monkeypatch.setattr("tests.local_job.StandInWorker", Varied)
    prompts, quality = ["TWIN1", "a", "TWIN1", "TWIN1"], {"filters": [{"kind": "near_duplicate"}]}
    job = make_job(prompts, quality=quality, output={"shard_rows": 2})
    job.plan()
    job.run_shard(pending_shards(job.ledger)[1])
    assert publish_now(job).counts == {"kept": 1, "rejected": 1, "quarantined": 0}
    job.run()
    final = job.publish()[0]
    assert [row[0] for row in content(job, final) if row[4] == "kept"] == ["prompts.txt:1/0", "prompts.txt:2/0"]


def test_keep_best_decides_rows_only_when_they_are_whole(make_job) -> None:
    """A partial version withholds rows with an open round, so that the end is that of one publication."""
    prompts = ["a", "FLAT", "b", "c", "FLAT d", "e"]
    sections: dict[str, Any] = {
        "quality": {"filters": FILTERS, "keep_best": BEST, "regenerate": 1, "max_quarantined_fraction": 1.0},
        "input": {"samples_per_row": 2},
        "output": {"shard_rows": 3},
    }
    job = make_job(prompts, **sections)
    job.plan()
    run_some(job, 1)
    first = publish_now(job)
    assert (first.withheld, first.left_out) == (2, 2 + 6), "the row FLAT waits for its second round"
    assert first.counts == {"kept": 2, "rejected": 2, "quarantined": 0}
    run_some(job, 1)
    extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger)
    second = publish_now(job)
    assert (second.withheld, second.left_out) == (4, 4 + 4)
    assert refilter(job.context.storage.uri, []).version == second, "a refilter withholds them too"
    job.run()
    final = job.publish()[0]
    assert (final.is_partial, final.withheld, sum(final.counts.values())) == (False, 0, 16)
    assert problems(job) == []


def test_a_refilter_withholds_what_was_published_by_other_criteria(make_job) -> None:
    """Under keep_best a row with an open round is decided later, also where an earlier version has its samples."""
    sections: dict[str, Any] = {
        "quality": {"filters": FILTERS, "regenerate": 1, "max_quarantined_fraction": 1.0},
        "input": {"samples_per_row": 2},
        "output": {"shard_rows": 2},
    }
    job = make_job(["a", "FLAT", "b", "c"], **sections)
    uri = job.context.storage.uri
    job.plan()
    run_some(job, 1)
    assert publish_now(job).counts == {"kept": 2, "rejected": 2, "quarantined": 0}
    found = refilter(uri, [f"quality.keep_best.{name}={value}" for name, value in BEST.items()])
    assert (found.version.withheld, found.version.left_out) == (2, 2 + 4), "the row FLAT waits for its second round"
    assert found.version.counts == {"kept": 1, "rejected": 1, "quarantined": 0}
    assert problems(job) == []
    run_some(job, 1)
    extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger)
    job.run()
    final = job.publish()[0]
    assert (final.is_partial, final.withheld, sum(final.counts.values())) == (False, 0, 10)
    assert problems(job) == []


def test_refilter_retry_gc_and_prune_on_top_of_a_partial_version(make_job) -> None:
    job = make_job(["a", "FLAT", "NAN", "b", "c", "FLAT", "d", "e"], quality={"filters": FILTERS})
    uri = job.context.storage.uri
    job.plan()
    run_some(job, 1)
    publish_now(job)
    found = refilter(uri, ["quality.filters.0.min_span=0.0"])
    assert (found.version.number, found.version.is_partial, found.moved) == (2, True, {"rejected -> kept": 1})
    assert problems(job) == []
    plan_retry(uri, ["quarantined"])
    run_some(job, 1)
    third = publish_now(job)
    assert (third.is_partial, third.counts["kept"], third.left_out) == (True, 3 + 4, 1)
    assert prune_versions(job.context.storage, 1, 0) == [1, 2]
    collect_garbage(uri, 0)
    assert problems(job) == []
    job.run()
    final = job.publish()[0]
    assert (final.is_partial, sum(final.counts.values())) == (False, 8)
    assert problems(job) == []


def test_validation_finds_what_a_partial_version_must_not_say(make_job) -> None:
    job = make_job([f"p{n}" for n in range(8)])
    job.plan()
    run_some(job, 1)
    publish_now(job)
    storage = job.context.storage
    name = "_versions/000001/version.json"
    good = storage.read_bytes(name)
    storage.write_bytes(name, good.replace(b'"left_out": 4', b'"left_out": 3'))
    assert problems(job) == ["version 1 says that it leaves out 3 samples, but these are 4."]
    storage.write_bytes(name, good.replace(b'"is_partial": true', b'"is_partial": false'))
    assert any("samples of version 1 have no commit" in problem for problem in problems(job))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_partial_versions_do_not_change_the_end(tmp_path: Path, seed: int) -> None:
    """Two outputs of one input are planned, made and retried alike; one of them is published in between."""
    draw = random.Random(seed)
    folder = input_folder(tmp_path, a="a0\nFLAT\nNAN\na3\na4\n", b="b0\nb1\nNAN\n")
    quality = {"filters": FILTERS, "regenerate": draw.choice([0, 2]), "max_quarantined_fraction": 1.0}
    jobs = [
        job_in(
            tmp_path, input={"uri": str(folder)}, quality=quality, output={"uri": str(tmp_path / name), "shard_rows": 2}
        )
        for name in ("partial", "whole")
    ]
    published = 0

    def both(act: Callable[[LocalJob], Any]) -> None:
        for job in jobs:
            act(job)

    both(lambda job: job.plan())
    for _ in range(12):
        match draw.choice(["run", "run", "run", "change", "retry", "round"]):
            case "run":
                order, count = draw.random(), draw.randint(1, 3)
                for job in jobs:
                    pending = sorted(pending_shards(job.ledger), key=lambda entry: entry.shard.id)
                    for entry in random.Random(order).sample(pending, min(count, len(pending))):
                        job.run_shard(entry)
            case "change":
                file = folder / draw.choice(["a.txt", "b.txt", "c.txt"])
                file.write_text(
                    "".join(f"{draw.choice(['x', 'FLAT', 'NAN'])} {n}\n" for n in range(draw.randint(1, 6)))
                )
                both(lambda job: job.plan())
            case "retry":
                outcomes = draw.choice([["quarantined"], ["rejected"]])
                both(lambda job, outcomes=outcomes: plan_retry(job.context.storage.uri, outcomes))
            case "round":
                both(lambda job: extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger))
        version, is_new = publish_committed(jobs[0].context.storage, jobs[0].ledger)
        published += is_new
        assert problems(jobs[0]) == [] or version is None
    for job in jobs:
        while pending_shards(job.ledger) or extend_with_regeneration(
            job.context.spec, job.context.fingerprint, job.ledger
        ):
            job.run()
    partial, whole = (job.publish()[0] for job in jobs)
    assert published > 2
    assert content(jobs[0], partial) == content(jobs[1], whole)
    assert (partial.counts, partial.reasons, partial.is_partial) == (whole.counts, whole.reasons, False)
    assert problems(jobs[0]) == problems(jobs[1]) == []
