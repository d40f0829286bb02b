from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jointdit.errors import PermanentError
from pipelines.dataset import about
from pipelines.dataset.garbage import collect_garbage, prune_versions
from pipelines.dataset.publish import publish
from pipelines.dataset.refilter import refilter
from pipelines.dataset.validation.validate import validate
from pipelines.engine.progress import Progress
from pipelines.ledger.entries import sha256
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version, read_latest, read_outcomes, read_version, version_numbers
from pipelines.run.job import generate_and_publish
from pipelines.run.rounds import pending_shards
from pipelines.store.storage import Storage
from tests.local_job import LocalJob, input_folder
from tests.old_outputs import as_earlier_format


def ids_in_files(storage: Storage, version: Version, outcome: str = "kept") -> list[str]:
    tables = (pq.read_table(io.BytesIO(storage.read_bytes(path))) for path in version.files_of(outcome))
    return [identifier for table in tables for identifier in table["id"].to_pylist()]


def test_a_version_holds_each_sample_once_in_the_order_of_the_plan(make_job) -> None:
    job = make_job([f"prompt {n}" for n in range(9)], input={"samples_per_row": 2})
    job.plan()
    for entry in reversed(pending_shards(job.ledger)):
        job.run_shard(entry)
    version, is_new = job.publish()
    assert is_new
    assert version.counts == {"kept": 18, "rejected": 0, "quarantined": 0}
    expected = [f"prompts.txt:{row}/{index}" for row in range(9) for index in (0, 1)]
    outcomes = read_outcomes(job.context.storage, version)
    assert outcomes["id"].to_pylist() == expected == ids_in_files(job.context.storage, version)
    assert outcomes["source"].to_pylist()[:3] == ["prompts.txt:0", "prompts.txt:0", "prompts.txt:1"]
    assert outcomes["file"].to_pylist()[0] == version.files[0].path
    assert read_version(job.context.storage, 1) == version


def test_nothing_new_publishes_nothing(make_job) -> None:
    job = make_job(["a", "b"])
    first = job.complete()
    before = {each.path: each.etag for each in job.context.storage.list()}
    assert job.publish() == (first, False)
    assert {each.path: each.etag for each in job.context.storage.list()} == before


def test_a_shard_without_a_commit_stops_publishing(make_job) -> None:
    job = make_job([f"prompt {n}" for n in range(6)])
    job.plan()
    job.run_shard(pending_shards(job.ledger)[0])
    with pytest.raises(PermanentError, match="is planned and not committed: run the job to its end first"):
        job.publish()
    assert version_numbers(job.context.storage) == []


@pytest.fixture
def folder_job(make_job, tmp_path: Path) -> LocalJob:
    """Three files of prompts that share one shard, and one with a shard of its own; published once."""
    folder = input_folder(tmp_path, a="a0\na1\n", b="b0\n", c="c0\nc1\nc2\nc3\n")
    job = make_job(input={"uri": str(folder)})
    job.complete()
    return job


def test_new_inputs_give_a_version_that_keeps_the_old_files(folder_job: LocalJob, tmp_path: Path) -> None:
    first = read_latest(folder_job.context.storage)
    (tmp_path / "in" / "d.txt").write_text("d0\n")
    second = folder_job.complete()
    assert (second.number, second.counts["kept"], second.superseded) == (2, 8, 0)
    assert second.files[: len(first.files)] == first.files
    assert read_version(folder_job.context.storage, 1) == first


def test_a_changed_input_supersedes_its_rows_and_no_others(folder_job: LocalJob, tmp_path: Path) -> None:
    storage = folder_job.context.storage
    (tmp_path / "in" / "a.txt").write_text("a0 changed\n")
    second = folder_job.complete()
    assert (second.number, second.superseded) == (2, 2)
    assert sorted(ids_in_files(storage, second)) == sorted(
        ["a.txt@2:0/0", "b.txt:0/0", "c.txt:0/0", "c.txt:1/0", "c.txt:2/0", "c.txt:3/0"]
    )
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(path))) for path in second.files_of("kept")]
    prompts = {row["id"]: row["prompt"] for table in tables for row in table.select(["id", "prompt"]).to_pylist()}
    assert prompts["a.txt@2:0/0"] == "a0 changed"
    rewritten = [file for file in second.files if "-v000002-" in file.path]
    assert [file.rows for file in rewritten] == [1]  # b.txt's row, whose table held a.txt's old rows too
    assert sha256(storage.read_bytes(rewritten[0].path)) == rewritten[0].sha256
    assert ids_in_files(storage, read_version(storage, 1))[:2] == ["a.txt:0/0", "a.txt:1/0"]  # the old version stands
    assert validate(storage.uri).problems == []


def test_a_moved_file_supersedes_by_row_id(folder_job: LocalJob, make_job, tmp_path: Path) -> None:
    (tmp_path / "in").rename(tmp_path / "moved")
    moved = make_job(input={"uri": str(tmp_path / "moved")})
    second = moved.complete()
    assert (second.counts["kept"], second.superseded) == (7, 7)
    ids = ids_in_files(moved.context.storage, second)
    assert len(ids) == len(set(ids)) == 7


def test_the_claim_of_an_earlier_format_is_overtaken(folder_job: LocalJob, tmp_path: Path) -> None:
    """Format 1 created outcomes.parquet first, which took the number; now version.json alone takes it."""
    storage = folder_job.context.storage
    claim = "_versions/000002/outcomes.parquet"
    storage.create_bytes(claim, b"of a driver that died before its version.json")
    (tmp_path / "in" / "d.txt").write_text("d0\n")
    assert folder_job.complete().number == 2
    assert version_numbers(storage) == [1, 2]
    assert validate(storage.uri).problems == []
    assert [each.path for each in collect_garbage(storage.uri, 0).objects] == [claim]


@pytest.mark.parametrize("number", [1, 2])
def test_an_output_of_an_earlier_format_goes_on(folder_job: LocalJob, tmp_path: Path, number: int) -> None:
    storage = folder_job.context.storage
    (tmp_path / "in" / "a.txt").write_text("a0 changed\n")
    folder_job.complete()
    as_earlier_format(storage, number)
    assert validate(storage.uri).problems == []
    assert folder_job.publish()[1] is False
    assert collect_garbage(storage.uri, 0).objects == ()
    (tmp_path / "in" / "d.txt").write_text("d0\n")
    assert (folder_job.complete().number, folder_job.publish()[1]) == (3, False)
    back = refilter(storage.uri, ["quality.filters=[{kind: depth_range, min_span: 0.0}]"]).version
    assert back.number == 4
    assert validate(storage.uri).problems == []
    assert prune_versions(storage, 1, 0) == [1, 2, 3]
    assert [info.path for info in storage.list("_versions/000002") if "outcomes" in info.path] == []
    assert validate(storage.uri).problems == []


def test_what_a_publisher_wrote_that_died_is_garbage_once_its_number_is_taken(
    folder_job: LocalJob, tmp_path: Path
) -> None:
    storage = folder_job.context.storage
    (tmp_path / "in" / "a.txt").write_text("a0 changed\n")
    second = folder_job.complete()
    storage.delete("_versions/000002/version.json")
    left = collect_garbage(storage.uri, 0)
    assert (left.objects, left.undecided) == ((), 3), "its publisher may be about to take the number"
    again, is_new = folder_job.publish()
    assert (again.number, is_new, again.counts) == (2, True, second.counts)
    lost = set(second.paths()) - set(again.paths()) - set(read_version(storage, 1).paths())
    assert {each.path for each in collect_garbage(storage.uri, 0).objects} == lost
    assert len(lost) == 3, "the segment and the one table that was written for version 2"
    assert validate(storage.uri).problems == []


class Overtaken(Ledger):
    """A driver that is overtaken by another right after it has read the plan for the n-th time."""

    def __init__(self, storage: Storage, overtake, reading: int = 1) -> None:
        super().__init__(storage)
        self.overtake, self.left = overtake, reading

    def plan_tables(self):
        tables = super().plan_tables()
        self.left -= 1
        if self.left == 0:
            self.overtake()
        return tables


def test_no_version_is_older_than_the_one_before_it(folder_job: LocalJob, tmp_path: Path) -> None:
    """The slower publisher must not put what it read earlier on top of the faster one's version."""
    storage = folder_job.context.storage
    (tmp_path / "in" / "d.txt").write_text("d0\n")
    folder_job.plan()
    folder_job.run()
    (tmp_path / "in" / "e.txt").write_text("e0\n")
    slow = Overtaken(storage, folder_job.complete)
    version, is_new = publish(storage, slow, folder_job.context.spec)
    assert (version.number, is_new, version.counts["kept"]) == (2, False, 9)
    assert version_numbers(storage) == [1, 2]


@pytest.mark.parametrize("reading", [1, 2])  # when looking for pending shards: before regeneration, and after it
def test_what_another_driver_plans_at_the_last_moment_is_made_too(
    folder_job: LocalJob, tmp_path: Path, reading: int
) -> None:
    """A driver that has nothing left to do must not fail because a shard has just been planned."""
    storage, context = folder_job.context.storage, folder_job.context
    (tmp_path / "in" / "a.txt").write_text("")  # no rows, so that its shard is committed without a worker
    ledger = Overtaken(storage, folder_job.plan, reading)
    version, is_new = generate_and_publish(context, ledger, Progress())
    assert (version.number, is_new, version.counts["kept"]) == (2, True, 5)
    about.refresh(storage, ledger)
    assert validate(storage.uri).problems == []


def test_superseded_rows_are_left_out_once_and_not_with_each_version(folder_job: LocalJob, tmp_path: Path) -> None:
    (tmp_path / "in" / "a.txt").write_text("a0 changed\n")
    second = folder_job.complete()
    (tmp_path / "in" / "d.txt").write_text("d0\n")
    third = folder_job.complete()
    assert third.files[: len(second.files)] == second.files
    assert [file.path for file in third.files if "-v000003-" in file.path] == []


def test_the_losers_objects_are_in_no_version(make_job) -> None:
    job = make_job(["a", "b"])
    job.plan()
    (entry,) = pending_shards(job.ledger)
    winner = job.run_shard(entry)
    job.context.storage.write_bytes(f"data/{entry.shard.id}-0123456789abcdef.parquet", b"of an attempt that was killed")
    version, _ = job.publish()
    assert version.files_of("kept") == [f"data/{entry.shard.id}-{winner.token}.parquet"]
    found = validate(job.context.storage.uri)
    assert found.problems == []
    assert found.notes == ["data/ has 1 objects (29 bytes) that no commit names."]


@pytest.mark.parametrize("name", ["README.md", "stats.json", "croissant.json", "gallery/index.html"])
def test_what_a_slower_driver_wrote_over_the_newer_version_is_written_anew(
    folder_job: LocalJob, tmp_path: Path, name: str
) -> None:
    """It was at version 1 when it began, wrote one of the files after version 2's were there, and died."""
    storage = folder_job.context.storage
    about.refresh(storage, folder_job.ledger)
    late = storage.read_bytes(name)
    (tmp_path / "in" / "d.txt").write_text("d0\n")
    folder_job.complete()
    about.refresh(storage, folder_job.ledger)
    right = storage.read_bytes(name)
    storage.write_bytes(name, late)
    about.refresh(storage, folder_job.ledger)
    assert storage.read_bytes(name) == right != late


def test_card_and_gallery_follow_the_latest_version(folder_job: LocalJob, tmp_path: Path) -> None:
    storage, ledger = folder_job.context.storage, Ledger(folder_job.context.storage)
    about.refresh(storage, ledger)
    before = {name: storage.info(name).etag for name in ("README.md", "stats.json", "gallery/index.html")}
    about.refresh(storage, ledger)
    assert {name: storage.info(name).etag for name in before} == before
    (tmp_path / "in" / "d.txt").write_text("d0\n")
    second = folder_job.complete()
    about.refresh(storage, ledger)
    readme = storage.read_bytes("README.md").decode()
    assert "Version 2" in readme
    assert all(file.path in readme for file in second.files)
    storage.delete("stats.json")  # a driver killed before it was written
    storage.write_bytes("README.md", b"half")
    about.refresh(storage, ledger)
    assert storage.read_bytes("README.md").decode() == readme
