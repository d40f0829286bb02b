"""A publication costs what is new: commits that a segment covers are not read, and few segments stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.dataset import merging
from pipelines.dataset.diff import compare
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger import changes, segments
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest, read_outcomes
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.plan.retry import plan_retry
from pipelines.store.storage import Storage
from tests.local_job import LocalJob, input_folder

FILTER = {"filters": [{"kind": "depth_range", "min_span": 0.1}]}


@pytest.fixture
def job(make_job, tmp_path: Path) -> LocalJob:
    """A published job of three shards with kept, rejected and quarantined samples."""
    folder = input_folder(tmp_path, a="a0\na1\nFLAT\na3\n", b="b0\nNAN\nb2\nb3\n", c="c0\nc1\nc2\nc3\n")
    job = make_job(input={"uri": str(folder)}, quality=FILTER)
    job.complete()
    return job


@pytest.fixture
def commits_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commits that are read from here on."""
    names: list[str] = []
    read = Storage.read_bytes

    def noted(self: Storage, name: str) -> bytes:
        names.extend([name] if name.startswith("_commits/") else [])
        return read(self, name)

    monkeypatch.setattr(Storage, "read_bytes", noted)
    return names


def test_only_new_commits_are_read(job: LocalJob, tmp_path: Path, commits_read: list[str]) -> None:
    storage = job.context.storage
    assert job.publish()[1] is False
    assert commits_read == [], "nothing is new"
    (tmp_path / "in" / "d.txt").write_text("d0\nd1\n")
    job.plan()
    (receipt,) = job.run()
    commits_read.clear()
    version, is_new = job.publish()
    assert (version.number, is_new, version.counts["kept"]) == (2, True, 12)
    assert commits_read == [f"_commits/{receipt.shard}.json"]
    commits_read.clear()
    assert read_status(storage.uri).committed_samples == 14
    assert len(compare(storage.uri, 1, 2).added) == 2
    assert extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger) == 0
    assert commits_read == []


def test_seeds_and_retries_of_covered_samples_read_no_commit(job: LocalJob, make_job, commits_read: list[str]) -> None:
    storage = job.context.storage
    uri = job.context.spec.input.uri[0]
    more = make_job(input={"uri": uri}, quality={**FILTER, "regenerate": 1})
    assert extend_with_regeneration(more.context.spec, more.context.fingerprint, more.ledger) == 1
    assert plan_retry(storage.uri, ["quarantined"]).counts == {"quarantined": 1}
    covered = read_latest(storage).content.ids.to_pylist()
    assert not {f"_commits/{shard}.json" for shard in covered} & set(commits_read)
    assert more.complete().counts == {"kept": 10, "rejected": 2, "quarantined": 1}
    assert validate(storage.uri).problems == []


def test_many_small_segments_are_merged(job: LocalJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those whose shards were replaced, by a changed file and a retry."""
    storage = job.context.storage
    monkeypatch.setattr(merging, "MOST_SMALL", 2)
    most = 0
    for number in range(6):
        (tmp_path / "in" / f"more{number}.txt").write_text(f"more {number}\n")
        if number == 2:
            (tmp_path / "in" / "a.txt").write_text("changed\nFLAT\n")
        if number == 4:
            plan_retry(storage.uri, ["quarantined"])
        version = job.complete()
        most = max(most, len(version.segments))
        assert sum(version.counts.values()) == 12 + number + 1 - (2 if number >= 2 else 0)
        ids = read_outcomes(storage, version)["id"].to_pylist()
        assert len(ids) == len(set(ids)) == sum(version.counts.values())
        assert validate(storage.uri).problems == []
    assert most <= 3
    assert not any("segments/000001" in path for path in read_latest(storage).own_paths), "the first one was merged"


def test_one_version_may_have_many_segments(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are decided and written some at a time, and samples stay in the order of the plan."""
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 6)
    monkeypatch.setattr(segments, "ROW_GROUP", 3)
    monkeypatch.setattr(changes, "SHARDS_AT_ONCE", 2)
    job = make_job([f"prompt {n}" for n in range(23)], output={"shard_rows": 2})
    version = job.complete()
    assert len(version.segments) == 4
    table = read_outcomes(job.context.storage, version)
    assert table["position"].to_pylist() == list(range(23))
    assert [file.path for file in version.files] == list(dict.fromkeys(table["file"].to_pylist()))
    assert validate(job.context.storage.uri).problems == []
    chosen = [entry.shard.id for entry in job.ledger.planned()][3:5]
    found = version.content.of_shards(chosen)
    assert [rows.samples["position"].to_pylist() for rows in found] == [[6, 7], [8, 9]]
    assert Ledger(job.context.storage).committed() == set(version.content.ids.to_pylist())


def test_appended_rows_do_not_touch_the_shards_of_their_file(make_job, tmp_path: Path, commits_read: list[str]) -> None:
    prompts = [f"p{number}" for number in range(16)]
    job = make_job(prompts)
    first = job.complete()
    job = make_job([*prompts, "new"])
    commits_read.clear()
    job.plan()
    assert commits_read == [], "the segments know the rows that were made"
    receipts = job.run()
    version, _ = job.publish()
    assert (version.counts["kept"], len(receipts)) == (17, 2)
    assert set(commits_read) == {f"_commits/{receipt.shard}.json" for receipt in receipts}
    assert set(first.files) < set(version.files), "no table is written again"
    job = make_job([*prompts[1:], "new"])
    job.complete()
    assert validate(job.context.storage.uri).problems == []
    assert read_latest(job.context.storage).counts["kept"] == 16
