from __future__ import annotations

from pathlib import Path

import pytest

from jointdit.errors import PermanentError, SpecError, StoreError
from pipelines.dataset.diff import compare, list_versions, tally
from pipelines.dataset.garbage import collect_garbage
from pipelines.dataset.status import read_status
from pipelines.ledger.versions import read_latest
from pipelines.plan.retry import plan_retry
from tests.local_job import LocalJob


@pytest.fixture
def job(make_job, tmp_path: Path) -> LocalJob:
    """Version 1: six prompts in two files. Version 2: a.txt lost a row and changed one, c.txt is new, FLAT is kept."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("a0\na1\na2\n")
    (folder / "b.txt").write_text("b0\nFLAT\nb2\n")
    (folder / "e.csv").write_text("id,prompt\ne0,before\n")
    quality = {"filters": [{"kind": "depth_range"}]}
    make_job(input={"uri": str(folder)}, quality=quality).complete()
    (folder / "a.txt").write_text("a0\n\n")
    (folder / "c.txt").write_text("c0\nFLAT\n")
    (folder / "e.csv").write_text("id,prompt\ne0,after\n")
    lax = make_job(input={"uri": str(folder)}, quality={"filters": []})
    plan_retry(lax.context.storage.uri, ["rejected"])
    lax.complete()
    return lax


def test_versions_are_listed_with_what_they_hold(job: LocalJob) -> None:
    first, second = list_versions(job.context.storage.uri)
    assert (first.number, first.counts, first.plans, first.superseded) == (
        1,
        {"kept": 6, "rejected": 1, "quarantined": 0},
        (1,),
        0,
    )
    assert (second.number, second.counts, second.plans, second.superseded) == (
        2,
        {"kept": 7, "rejected": 0, "quarantined": 1},
        (1, 2, 3),
        4,
    )


def test_a_difference_names_each_sample(job: LocalJob) -> None:
    found = compare(job.context.storage.uri, 1, 2)
    assert sorted(change.id for change in found.added) == ["a.txt@3:1/0", "c.txt:0/0", "c.txt:1/0"]
    assert [(c.id, c.before) for c in found.gone] == [("a.txt:1/0", "kept"), ("a.txt:2/0", "kept")]
    assert [(c.id, c.before, c.after) for c in found.changed] == [("b.txt:1/0", "rejected", "kept")]
    assert [change.id for change in found.made_again] == ["e0/0"]
    assert found.same == 3
    assert found.reasons == {"depth_range": -1}
    assert tally(found.changed) == {"rejected -> kept": 1}
    assert tally(found.added) == {"kept": 2, "quarantined": 1}


def test_the_way_back_mirrors_it(job: LocalJob) -> None:
    found = compare(job.context.storage.uri, 2, 1)
    assert sorted(change.id for change in found.gone) == ["a.txt@3:1/0", "c.txt:0/0", "c.txt:1/0"]
    assert [change.id for change in found.added] == ["a.txt:1/0", "a.txt:2/0"]
    (rejected,) = [change for change in found.changed if change.after == "rejected"]
    assert rejected.reasons[0].startswith("depth_range")
    assert compare(job.context.storage.uri, 1, 1).same == 7


def test_a_version_that_is_not_there_names_those_that_are(job: LocalJob) -> None:
    with pytest.raises(PermanentError, match=r"has no version 3: it has 1, 2\.$"):
        compare(job.context.storage.uri, 1, 3)


def test_no_job_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no job"):
        list_versions(str(tmp_path))


def test_a_version_whose_spec_today_refuses_is_listed_compared_and_kept_by_gc(job: LocalJob) -> None:
    """Rules become stricter; what was published stays readable, and only what needs the spec says so."""
    storage = job.context.storage
    name = Path(storage.uri) / "_versions" / "000002" / "version.json"
    name.write_text(name.read_text().replace('"spec": {', '"spec": {"key_of_old_code": 1, ', 1))
    assert [version.number for version in list_versions(storage.uri)] == [1, 2]
    assert compare(storage.uri, 1, 2).first.number == 1
    assert collect_garbage(storage.uri, 0.0, dry_run=True).objects == ()
    assert read_status(storage.uri).committed_shards > 0
    with pytest.raises(SpecError, match="key_of_old_code"):
        assert read_latest(storage).spec
