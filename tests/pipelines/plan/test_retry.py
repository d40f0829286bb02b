"""Retried samples end exactly once in each version, with their id and seed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jointdit.errors import StoreError
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.counted import Uncovered
from pipelines.ledger.versions import Version, read_latest, read_outcomes, read_version
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.plan.retry import plan_retry
from pipelines.run.rounds import pending_shards
from tests.local_job import LocalJob

FILTER = {"filters": [{"kind": "depth_range"}], "max_quarantined_fraction": 1.0}


def outcomes(job: LocalJob, version: Version | None = None) -> dict[str, str]:
    version = version or read_latest(job.context.storage)
    table = read_outcomes(job.context.storage, version)
    return dict(zip(table["id"].to_pylist(), table["outcome"].to_pylist(), strict=True))


def rows(job: LocalJob, version: Version, outcome: str = "kept") -> dict[str, dict]:
    data = [job.context.storage.read_bytes(path) for path in version.files_of(outcome)]
    return {row["id"]: row for each in data for row in pq.read_table(io.BytesIO(each)).to_pylist()}


def scene(path: Path, seed: int) -> None:
    Image.linear_gradient("L").rotate(seed).convert("RGB").resize((48, 32)).save(path)


@pytest.fixture
def images(make_job, tmp_path: Path) -> LocalJob:
    """Eight images in two shards; 1 and 5 are named by the table and missing when the job runs first."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (0, 2, 3, 4, 6, 7):
        scene(folder / f"{number}.png", number)
    lines = "".join(f'{{"id": "p{n}", "image": "photos/{n}.png"}}\n' for n in range(8))
    (tmp_path / "rows.jsonl").write_text(lines)
    inputs = {"uri": str(tmp_path / "rows.jsonl"), "samples_per_row": 2}
    job = make_job(task="depth", input=inputs, quality=FILTER, output={"points": "ply"})
    assert job.complete().counts == {"kept": 12, "rejected": 0, "quarantined": 4}
    return job


def test_a_mended_cause_turns_quarantined_samples_into_kept_ones(images: LocalJob, tmp_path: Path) -> None:
    job, storage = images, images.context.storage
    first = read_latest(storage)
    scene(tmp_path / "photos" / "1.png", 1)
    scene(tmp_path / "photos" / "5.png", 5)
    plan = plan_retry(storage.uri, ["quarantined"])
    assert (plan.counts, plan.shards) == ({"quarantined": 4}, 1)
    (entry,) = pending_shards(job.ledger)
    assert [(span.start, span.stop) for span in entry.shard.spans] == [(1, 2), (5, 6)]
    assert validate(storage.uri).problems == []
    status = read_status(storage.uri)
    assert (status.samples, status.committed_samples, status.is_complete) == (16, 12, False)

    job.run()
    second, is_new = job.publish()
    assert is_new
    assert (second.counts, second.superseded) == ({"kept": 16, "rejected": 0, "quarantined": 0}, 4)
    found = validate(storage.uri)
    assert found.problems == []
    assert (found.counts["kept"], found.notes) == (16, [])
    assert sorted(outcomes(job)) == sorted(f"p{row}/{index}" for row in range(8) for index in (0, 1))
    assert set(outcomes(job).values()) == {"kept"}
    assert outcomes(job, read_version(storage, 1))["p1/0"] == "quarantined", "the old version stands"
    assert read_version(storage, 1) == first
    status = read_status(storage.uri)
    assert (status.samples, status.committed_samples, status.counts["kept"]) == (16, 16, 16)
    assert status.is_complete


def test_a_retried_sample_has_the_pixels_of_a_job_without_the_fault(images: LocalJob, make_job, tmp_path: Path) -> None:
    for number in (1, 5):
        scene(tmp_path / "photos" / f"{number}.png", number)
    plan_retry(images.context.storage.uri, ["quarantined"])
    retried = rows(images, images.complete())
    inputs = {"uri": str(tmp_path / "rows.jsonl"), "samples_per_row": 2}
    whole = make_job(task="depth", input=inputs, quality=FILTER, output={"uri": str(tmp_path / "whole")})
    expected = rows(whole, whole.complete())
    for identifier in ("p1/0", "p1/1", "p5/0", "p5/1"):
        assert retried[identifier]["seed"] == expected[identifier]["seed"]
        assert retried[identifier]["depth"] == expected[identifier]["depth"]


def test_a_second_retry_plans_nothing_until_the_first_is_done(images: LocalJob) -> None:
    uri = images.context.storage.uri
    assert plan_retry(uri, ["quarantined"]).shards == 1
    again = plan_retry(uri, ["quarantined"])
    assert (again.shards, again.counts) == (0, {"quarantined": 0})
    images.run()  # the images are still missing
    version, _ = images.publish()
    assert version.counts == {"kept": 12, "rejected": 0, "quarantined": 4}
    assert plan_retry(uri, ["quarantined"]).counts == {"quarantined": 4}
    assert len(pending_shards(images.ledger)) == 1
    assert images.complete().counts["quarantined"] == 4
    assert validate(uri).problems == []
    assert [entry.retry for entry in images.ledger.planned()] == [0, 0, 1, 2]
    assert len({entry.shard.id for entry in images.ledger.planned()}) == 4


def test_rejected_samples_are_decided_anew_and_keep_their_pixels(make_job) -> None:
    job = make_job(["a", "FLAT", "b"], quality={"filters": [{"kind": "depth_range"}]}, input={"samples_per_row": 2})
    first = job.complete()
    assert first.counts == {"kept": 4, "rejected": 2, "quarantined": 0}
    lax = make_job(["a", "FLAT", "b"], quality={"filters": []}, input={"samples_per_row": 2})
    assert plan_retry(job.context.storage.uri, ["rejected"]).counts == {"rejected": 2}
    second = lax.complete()
    assert second.counts == {"kept": 6, "rejected": 0, "quarantined": 0}
    before, after = rows(job, first, "rejected"), rows(lax, second)
    for identifier, row in before.items():
        assert (after[identifier]["seed"], after[identifier]["rgb"]) == (row["seed"], row["rgb"])
    assert list(before) == ["prompts.txt:1/0", "prompts.txt:1/1"]
    assert validate(job.context.storage.uri).problems == []
    assert second.spec.quality.filters == ()


def test_one_sample_of_a_row_is_retried_alone(make_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of one sample, not of its row: its neighbour of the same row keeps its shard."""
    from tests import stand_in

    real = stand_in.misbehave

    def fails_once(text: str) -> None:
        calls.append(text)
        if len(calls) == 2:
            raise RuntimeError("a passing fault of the model")
        real(text)

    calls: list[str] = []
    monkeypatch.setattr(stand_in, "misbehave", fails_once)
    job = make_job(["a", "b"], input={"samples_per_row": 2}, model={"batch_size": 1})
    first = job.complete()
    (failed,) = [identifier for identifier, outcome in outcomes(job).items() if outcome == "quarantined"]
    kept = {identifier for identifier, outcome in outcomes(job).items() if outcome == "kept"}
    assert len(kept) == 3
    plan_retry(job.context.storage.uri, ["quarantined"])
    (entry,) = pending_shards(job.ledger)
    assert (entry.samples, entry.indices) == (1, (int(failed.rsplit("/")[-1]),))
    second = job.complete()
    assert second.counts["kept"] == 4
    table = read_outcomes(job.context.storage, second)
    shards = dict(zip(table["id"].to_pylist(), table["shard"].to_pylist(), strict=True))
    assert shards[failed] == entry.shard.id
    assert {shards[identifier] for identifier in kept} == {first.files[0].shard}


def test_an_id_that_could_not_be_read_is_superseded_by_the_one_that_can(make_job, tmp_path: Path, monkeypatch) -> None:
    """The sample's identity is its place in the input, so a reader that learned to read an id doubles nothing."""
    from pipelines.stages.readers import rows as reader

    (tmp_path / "rows.jsonl").write_text('{"id": 1.5, "prompt": "a"}\n{"id": "y", "prompt": "b"}\n')
    job = make_job(input={"uri": str(tmp_path / "rows.jsonl")})
    job.complete()
    assert outcomes(job) == {"rows.jsonl:0/0": "quarantined", "y/0": "kept"}
    monkeypatch.setattr(reader, "read_id", str)
    plan_retry(job.context.storage.uri, ["quarantined"])
    job.complete()
    assert outcomes(job) == {"y/0": "kept", "1.5/0": "kept"}
    assert validate(job.context.storage.uri).problems == []


def test_retry_and_regeneration_do_not_meet(make_job) -> None:
    """A sample that fails, is retried and is rejected then gets its new seed, with an index that nobody has."""
    quality = {**FILTER, "regenerate": 1}
    job = make_job(["FLAT", "a"], quality=quality, input={"samples_per_row": 2})
    spec, fingerprint = job.context.spec, job.context.fingerprint
    job.plan()
    job.run()
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 2
    job.run()
    job.publish()
    assert plan_retry(job.context.storage.uri, ["rejected"]).counts == {"rejected": 4}
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 0, "they are to be decided anew first"
    job.run()
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 0, "each had its new seed before"
    version, _ = job.publish()
    assert version.counts == {"kept": 2, "rejected": 4, "quarantined": 0}
    assert sorted(outcomes(job)) == [f"prompts.txt:0/{n}" for n in range(4)] + [f"prompts.txt:1/{n}" for n in (0, 1)]
    assert validate(job.context.storage.uri).problems == []


def test_a_late_reject_gets_an_index_after_those_that_were_regenerated(make_job, monkeypatch) -> None:
    from tests import stand_in

    calls: list[str] = []

    def fails_once(text: str) -> None:
        calls.append(text)
        if len(calls) == 1:
            raise RuntimeError("a passing fault of the model")

    monkeypatch.setattr(stand_in, "misbehave", fails_once)
    quality = {**FILTER, "regenerate": 1}
    job = make_job(["FLAT"], quality=quality, input={"samples_per_row": 2}, model={"batch_size": 1})
    spec, fingerprint = job.context.spec, job.context.fingerprint
    job.plan()
    job.run()  # one sample fails, the other is rejected
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 1
    job.run()
    plan_retry(job.context.storage.uri, ["quarantined"])
    job.run()  # and now it is rejected too
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 1
    job.run()
    job.publish()
    assert outcomes(job) == {f"prompts.txt:0/{n}": "rejected" for n in range(4)}
    assert validate(job.context.storage.uri).problems == []


def test_a_newer_input_version_supersedes_what_was_retried(images: LocalJob, tmp_path: Path) -> None:
    plan_retry(images.context.storage.uri, ["quarantined"])
    (tmp_path / "rows.jsonl").write_text('{"id": "p0", "image": "photos/0.png"}\n')
    assert images.complete().counts == {"kept": 2, "rejected": 0, "quarantined": 0}
    assert pending_shards(images.ledger) == []
    assert plan_retry(images.context.storage.uri, ["quarantined"]).shards == 0
    assert validate(images.context.storage.uri).problems == []
    assert read_status(images.context.storage.uri).is_complete


def test_rows_whose_file_changed_and_changed_back_are_healed_as_their_sentence_says(make_job, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    job = make_job(["a", "b"])
    job.plan()
    before = path.stat()
    path.write_text("another file for a while\n")
    job.run()
    path.write_text("a\nb\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    version, _ = job.publish()
    assert version.counts == {"kept": 0, "rejected": 0, "quarantined": 2}
    errors = {row["error"].partition("): ")[2] for row in rows(job, version, "quarantined").values()}
    (sentence,) = errors
    assert sentence.startswith("a new run plans a changed file; if you restore it, plan these rows again with")
    assert job.complete() == version, "a run plans nothing: this version of the file is planned"
    assert plan_retry(job.context.storage.uri, ["quarantined"]).counts == {"quarantined": 2}
    assert job.complete().counts == {"kept": 2, "rejected": 0, "quarantined": 0}
    assert validate(job.context.storage.uri).problems == []


def test_an_unfinished_job_can_be_retried(make_job) -> None:
    """Too many quarantined stop a run: what is committed stays, and its bad samples may be tried again."""
    job = make_job(["a", "", "b", "c", "d", "e"])
    job.plan()
    job.run_shard(pending_shards(job.ledger)[0])
    assert plan_retry(job.context.storage.uri, ["quarantined"]).counts == {"quarantined": 1}
    assert len(pending_shards(job.ledger)) == 2
    assert job.complete().counts == {"kept": 5, "rejected": 0, "quarantined": 1}
    assert validate(job.context.storage.uri).problems == []


def test_no_job_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no job"):
        plan_retry(str(tmp_path), ["quarantined"])


def test_an_output_without_a_plan_has_nothing_to_retry(make_job) -> None:
    job = make_job(["a"])
    job.ledger.open_job(job.context.spec, job.context.fingerprint)
    found = plan_retry(job.context.storage.uri, ["quarantined", "rejected"])
    assert (found.counts, found.shards) == ({"quarantined": 0, "rejected": 0}, 0)


def test_a_retry_follows_from_the_plan_that_it_read(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the plan grows after it was read, the retry is decided again."""
    job = make_job(["NAN", "b"])
    job.complete()
    since, seen = Uncovered.since, []

    def overtaken(*arguments, **options):
        work = since(*arguments, **options)
        if not seen:
            seen.append(plan_retry(job.context.storage.uri, ["quarantined"]).counts)
        return work

    def first_is_overtaken(*arguments, **options):
        monkeypatch.setattr(Uncovered, "since", since)
        return overtaken(*arguments, **options)

    monkeypatch.setattr(Uncovered, "since", first_is_overtaken)
    assert plan_retry(job.context.storage.uri, ["quarantined"]).counts == {"quarantined": 0}
    assert seen == [{"quarantined": 1}]
