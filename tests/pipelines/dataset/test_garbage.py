"""Which objects garbage collection deletes, and which it must keep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jointdit.errors import StoreError
from pipelines.dataset.garbage import collect_garbage, is_decided, prune_versions
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import read_latest, read_version, version_numbers
from pipelines.run.rounds import pending_shards
from pipelines.store.storage import Storage
from tests.local_job import LocalJob, input_folder

LOSER = "0123456789abcdef"


@pytest.fixture(params=["local", "s3"])
def job(request: pytest.FixtureRequest, make_job, tmp_path: Path) -> LocalJob:
    """Two shards, the first committed; each has the table and the point cloud of an attempt that did not commit."""
    uri = str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3").make_bucket() + "/out"
    job = make_job([f"prompt {n}" for n in range(6)], output={"uri": uri, "points": "ply"})
    job.plan()
    first, second = pending_shards(job.ledger)
    job.run_shard(first)
    for entry in (first, second):
        job.context.storage.write_bytes(f"data/{entry.shard.id}-{LOSER}.parquet", b"of a loser")
        job.context.storage.write_bytes(f"pointclouds/{entry.shard.id}-{LOSER}/00000.ply", b"ply")
    return job


def paths(job: LocalJob) -> set[str]:
    return {each.path for each in job.context.storage.list()}


def test_only_a_committed_shards_unnamed_objects_go(job: LocalJob) -> None:
    first, second = job.ledger.planned()
    before = paths(job)
    expected = {f"data/{first.shard.id}-{LOSER}.parquet", f"pointclouds/{first.shard.id}-{LOSER}/00000.ply"}
    found = collect_garbage(job.context.storage.uri, 0, dry_run=True)
    assert {each.path for each in found.objects} == expected
    assert (found.bytes, found.undecided, found.undecided_bytes) == (13, 2, 13)
    assert paths(job) == before, "a dry run deletes nothing"
    assert collect_garbage(job.context.storage.uri, 0) == found
    assert paths(job) == before - expected
    assert f"data/{second.shard.id}-{LOSER}.parquet" in paths(job), "its attempt may be about to commit"

    job.run()
    job.publish()
    found = collect_garbage(job.context.storage.uri, 0)
    assert {each.path for each in found.objects} == {
        f"data/{second.shard.id}-{LOSER}.parquet",
        f"pointclouds/{second.shard.id}-{LOSER}/00000.ply",
    }
    checked = validate(job.context.storage.uri)
    assert (checked.problems, checked.notes) == ([], [])
    assert collect_garbage(job.context.storage.uri, 0).objects == ()


def test_age_is_a_condition_on_top(job: LocalJob) -> None:
    uri = job.context.storage.uri
    before = paths(job)
    assert collect_garbage(uri, older_than_seconds=3600).objects == ()
    assert paths(job) == before
    if job.context.storage.is_local:
        first, second = job.ledger.planned()
        for entry in (first, second):
            os.utime(job.context.storage.path(f"data/{entry.shard.id}-{LOSER}.parquet"), (0, 0))
        found = collect_garbage(uri, older_than_seconds=3600)
        assert [each.path for each in found.objects] == [f"data/{first.shard.id}-{LOSER}.parquet"]


def test_a_half_written_file_goes_when_its_shard_is_decided_and_its_writer_long_gone(make_job, tmp_path: Path) -> None:
    """SIGKILL in the middle of a write: what is left is no object, and takes room all the same."""
    job = make_job([f"prompt {n}" for n in range(6)])
    job.plan()
    first, second = pending_shards(job.ledger)
    job.run_shard(first)
    script = (
        "import os, signal, sys\n"
        "from pipelines.store.storage import Storage\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Storage(sys.argv[1]).write_bytes(sys.argv[2], b'half a table')\n"
    )
    for entry in (first, second):
        name = f"data/{entry.shard.id}-{LOSER}.parquet"
        died = subprocess.run([sys.executable, "-c", script, job.context.storage.uri, name])
        assert died.returncode == -signal.SIGKILL
    halves = sorted((tmp_path / "out" / "data").glob(".tmp-*"))
    assert len(halves) == 2
    assert collect_garbage(job.context.storage.uri, 0).objects == (), "it may be about to be renamed"
    for half in halves:
        os.utime(half, (0, 0))
    found = collect_garbage(job.context.storage.uri, 0)
    assert [each.size for each in found.objects] == [len(b"half a table")]
    (left,) = (tmp_path / "out" / "data").glob(".tmp-*")
    assert second.shard.id in left.name, "its shard has no commit yet"
    assert validate(job.context.storage.uri).notes == []


def test_what_killed_writers_left_in_the_ledger_goes_after_an_hour(make_job, tmp_path: Path) -> None:
    job = make_job(["a"])
    job.complete()
    out = tmp_path / "out"
    names = ["_plan/.tmp-0123-000002.parquet", "_commits/.tmp-0123-ab.json", "_probe/0123456789abcdef"]
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"half")
    assert collect_garbage(str(out), 0).objects == (), "their writers may be at work"
    for name in names:
        os.utime(out / name, (0, 0))
    assert sorted(each.path for each in collect_garbage(str(out), 0).objects) == sorted(names)
    assert validate(str(out)).problems == []


def test_a_retained_version_keeps_its_files(make_job, tmp_path: Path) -> None:
    folder = input_folder(tmp_path, a="a0\na1\n", b="b0\n")
    job = make_job(input={"uri": str(folder)})
    job.complete()
    (folder / "a.txt").write_text("a0 changed\n")
    job.complete()
    (folder / "b.txt").write_text("b0 changed\n")
    job.complete()
    storage = job.context.storage
    assert version_numbers(storage) == [1, 2, 3]
    rewritten = [file.path for file in read_version(storage, 2).files if "-v000002-" in file.path]
    assert rewritten
    assert all(path not in {file.path for file in read_latest(storage).files} for path in rewritten)
    assert collect_garbage(storage.uri, 0).objects == ()
    assert validate(storage.uri).problems == []
    lost = rewritten[0].replace("-v000002-", "-v000003-")
    storage.write_bytes(lost, b"of a publisher that lost the race for version 3")
    working = rewritten[0].replace("-v000002-", "-v000004-")
    storage.write_bytes(working, b"of an active publisher")
    found = collect_garbage(storage.uri, 0)
    assert [each.path for each in found.objects] == [lost]
    assert found.undecided == 1
    assert storage.exists(working)


@pytest.mark.parametrize("at", ["list", "names", "read_bytes"])
def test_a_version_that_is_published_meanwhile_keeps_its_files(
    make_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """At each step of gc: its publisher has written the files, and creates version.json before gc goes on."""
    folder = input_folder(tmp_path, a="a0\na1\n", b="b0\n")
    job = make_job(input={"uri": str(folder)})
    job.complete()
    storage, steps = job.context.storage, 0
    (folder / "a.txt").write_text("a0 changed\n")
    job.plan()
    job.run()
    create, ask = Storage.create_bytes, getattr(Storage, at)
    held: list[tuple[str, bytes]] = []

    def ask_and_publish(self: Storage, *arguments):
        nonlocal steps
        answer = ask(self, *arguments)
        steps -= 1
        if steps == 0 and held:
            create(storage, *held.pop())
        return answer

    def create_bytes(self: Storage, name: str, data: bytes) -> None:
        if name.endswith("/version.json"):
            held.append((name, data))
        else:
            create(self, name, data)

    monkeypatch.setattr(Storage, "create_bytes", create_bytes)
    for step in range(1, 20):
        version = job.publish()[0]
        assert held, "the publisher waits before it creates version.json"
        monkeypatch.setattr(Storage, at, ask_and_publish)
        steps = step
        collect_garbage(storage.uri, 0)
        monkeypatch.setattr(Storage, at, ask)
        if held:
            break  # gc has fewer steps than that
        assert [path for path in version.paths() if not storage.exists(path)] == [], f"{at}, step {step}"
        storage.delete(f"_versions/{version.number:06d}/version.json")
    assert step > 1


def test_a_version_that_the_listing_missed_keeps_its_files(
    make_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk of folders can see a later version and miss an earlier one that was published behind its back."""
    folder = input_folder(tmp_path, a="a0\n", b="b0\n", c="c0\n")
    job = make_job(input={"uri": str(folder)})
    job.complete()
    for name in "adb":  # version 3 names the table that was written for 2, and 4 does not
        (folder / f"{name}.txt").write_text("changed\n")
        job.complete()
    storage = job.context.storage
    names = Storage.names

    def names_but_one(self: Storage, *of: str) -> list[str]:
        return [name for name in names(self, *of) if not name.startswith("000003/")]

    monkeypatch.setattr(Storage, "names", names_but_one)
    prune_versions(storage, 1, 0)
    monkeypatch.undo()
    assert version_numbers(storage) == [3, 4]
    assert [path for n in (3, 4) for path in read_version(storage, n).paths() if not storage.exists(path)] == []


def test_a_damaged_commit_stops_it_before_anything_is_deleted(make_job) -> None:
    job = make_job(["a", "b"])
    job.complete()
    (entry,) = job.ledger.planned()
    job.context.storage.write_bytes(f"_commits/{entry.shard.id}.json", b"{")
    job.context.storage.write_bytes(f"data/{entry.shard.id}-{'0' * 16}.parquet", b"of a killed attempt")
    before = paths(job)
    with pytest.raises(StoreError, match="is not valid JSON"):
        collect_garbage(job.context.storage.uri, 0)
    assert paths(job) == before


@pytest.mark.parametrize(
    ("path", "decided"),
    [
        ("data/aa11-0123456789abcdef.parquet", True),
        ("pointclouds/aa11-0123456789abcdef/00000.ply", True),
        ("data/bb22-0123456789abcdef.parquet", False),
        ("data/aa11-v000002-0123456789abcdef.parquet", True),
        ("data/aa11-v000003-0123456789abcdef.parquet", False),
        ("data/aa11-v000002-0123456789abcdef-0123456789abcdef.parquet", True),
        ("pointclouds/aa11-v000003-0123456789abcdef-0123456789abcdef.ply", False),
        ("_versions/000002/outcomes.parquet", True),
        ("_versions/000002/held-0123456789abcdef.parquet", True),
        ("_versions/000003/outcomes-0123456789abcdef.parquet", False),
        ("_versions/segments/000002-0123456789abcdef-0123456789abcdef.parquet", True),
        ("_versions/segments/000002-0123456789abcdef-0123456789abcdef-shards.parquet", True),
        ("_versions/segments/000003-0123456789abcdef-0123456789abcdef.parquet", False),
        ("_versions/000002/notes.parquet", False),
        ("data/somebody's own.parquet", False),
        ("data/aa11.parquet", False),
        ("data/aa11-0123456789abcdef.parquet.part", False),
        ("data/aa11-0123456789abcdef (copy).parquet", False),
    ],
)
def test_what_is_decided(path: str, decided: bool) -> None:
    assert is_decided(path, {"aa11": None}, {1, 2}) is decided
