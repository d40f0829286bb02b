from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

from jointdit.errors import PermanentError, SpecError, StoreError
from pipelines.ledger.entries import Commit, SampleOutcome, StoredObject
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage

SHARD, OTHER = "0123456789abcdef0123", "fedcba98765432100000"


@pytest.fixture(params=["local", "s3"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "local":
        return Ledger(Storage(str(tmp_path / "out")))
    return Ledger(Storage(request.getfixturevalue("s3").make_bucket("ledger") + "/out"))


def commit(token: str) -> Commit:
    samples = (
        SampleOutcome("a/0", 0, 0, 0, "kept"),
        SampleOutcome("a/1", 0, 0, 1, "rejected", ("depth_range: flat",)),
        SampleOutcome("b/0", 0, 1, 0, "quarantined"),
        SampleOutcome("b/1", 0, 1, 1, "kept"),
    )
    objects = (StoredObject("data/x.parquet", 10, "0" * 64, 2, "kept"),)
    return Commit(SHARD, token, objects, samples, code="1", host="h", finished="now", seconds=1.5)


def test_a_commit_comes_back_as_it_was(ledger: Ledger) -> None:
    assert ledger.read_commit(SHARD) is None
    assert ledger.commit(commit("one")) == commit("one")
    found = ledger.read_commit(SHARD)
    assert found == commit("one")
    assert found.counts == {"kept": 2, "rejected": 1, "quarantined": 1}
    assert ledger.committed() == {SHARD}
    assert ledger.read_commits([SHARD, OTHER]) == {SHARD: commit("one")}


def test_the_first_commit_stands_and_the_second_learns_of_it(ledger: Ledger) -> None:
    ledger.commit(commit("one"))
    assert ledger.commit(commit("two")).token == "one"
    assert ledger.read_commit(SHARD).token == "one"


def test_committing_again_with_the_same_token_is_a_success(ledger: Ledger) -> None:
    """What happens when the answer to the first was lost."""
    ledger.commit(commit("one"))
    assert ledger.commit(commit("one")).token == "one"


def test_crashes_are_counted_across_drivers(ledger: Ledger) -> None:
    ledger.record_crash(SHARD, {"stage": "read"})
    Ledger(ledger.storage).record_crash(SHARD, {"stage": "generate"})
    for _ in range(9):
        ledger.record_crash(SHARD, {"stage": "finish"})
    assert [record["stage"] for record in ledger.crashes(SHARD)] == ["read", "generate"] + ["finish"] * 9
    assert ledger.shards_with_crashes() == {SHARD}
    assert ledger.crashes(OTHER) == []


def test_a_crash_is_counted_although_an_earlier_record_is_gone(ledger: Ledger) -> None:
    """Counting the records would give the number of the last one again, for ever."""
    for stage in ("read", "generate"):
        ledger.record_crash(SHARD, {"stage": stage})
    ledger.storage.delete(f"_crashes/{SHARD}/1.json")
    ledger.record_crash(SHARD, {"stage": "finish"})
    assert [record["stage"] for record in ledger.crashes(SHARD)] == ["generate", "finish"]


def test_a_job_is_frozen_and_agreed_with(ledger: Ledger) -> None:
    spec = load_spec({"task": "joint", "input": {"uri": "/in.txt"}, "output": {"uri": ledger.storage.uri}})
    assert not ledger.check_job(spec, {"model.steps": 4})
    first = ledger.open_job(spec, {"task": "joint", "model.steps": 20})
    assert ledger.open_job(spec, {"task": "joint", "model.steps": 20}) == first == ledger.read_job()
    assert (first.spec["task"], first.resolved["model"]["steps"]) == ("joint", 20)
    for check in (
        lambda: ledger.open_job(spec, {"task": "joint", "model.steps": 4}),
        lambda: ledger.check_job(spec, {"model.steps": 4}),
    ):
        with pytest.raises(SpecError, match=r"already holds a job that differs in .*model.steps \(20 there, 4 here\)"):
            check()


def test_no_job_is_one_sentence(ledger: Ledger) -> None:
    with pytest.raises(StoreError, match=r"holds no job: there is no _job.json; check the address\.$"):
        ledger.read_job()


def test_damage_is_named(tmp_path: Path) -> None:
    ledger = Ledger(Storage(str(tmp_path)))
    ledger.commit(commit("one"))
    path = tmp_path / "_commits" / f"{SHARD}.json"
    fields = json.loads(path.read_text())
    for text in ("{", "[" * 100_000, "\0"):
        path.write_text(text)
        with pytest.raises(StoreError, match=rf"{SHARD}.json is not valid JSON"):
            ledger.read_commit(SHARD)
    path.write_text(json.dumps({**fields, "format": 2}))
    with pytest.raises(PermanentError, match="has format 2 and this version reads 1"):
        ledger.read_commit(SHARD)
    reasons = {**fields["samples"], "reasons": []}
    for damaged in ({**fields, "objects": None}, {**fields, "samples": []}, {**fields, "samples": reasons}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(StoreError, match="is damaged"):
            ledger.read_commit(SHARD)


def test_a_damaged_job_or_crash_record_is_named(ledger: Ledger) -> None:
    ledger.storage.write_bytes("_job.json", b'{"format": 1, "spec": {}}')
    with pytest.raises(StoreError, match=r"_job.json has no code, so it is damaged: restore it from a backup\.$"):
        ledger.read_job()
    ledger.record_crash(SHARD, {"at": "now"})
    with pytest.raises(StoreError, match=rf"_crashes/{SHARD}/1.json has no stage, so it is damaged"):
        ledger.crashes(SHARD)


def test_a_commit_stays_small(tmp_path: Path) -> None:
    """256 rows of 2 samples with a point cloud each: the size that DESIGN's receipts allow."""
    samples = tuple(
        SampleOutcome(f"folder/image-{n:06d}.png:0/{i}", 0, n, i, "kept") for n in range(256) for i in (0, 1)
    )
    objects = tuple(
        StoredObject(f"pointclouds/{'a' * 20}-{'b' * 16}/{n:05d}.ply", 10**6, "0" * 64, 65536, "kept", "points")
        for n in range(512)
    )
    assert len(replace(commit("one"), samples=samples, objects=objects).to_bytes()) < 200_000


def test_a_single_writer_is_remembered_by_whoever_opens_the_output(ledger: Ledger) -> None:
    uri = ledger.storage.uri
    spec = load_spec({"task": "joint", "input": {"uri": "/in.txt"}, "output": {"uri": uri}})
    assert not open_output(uri).single_writer, "there is no job yet"
    assert open_output(uri, single_writer=True).single_writer
    Ledger(Storage(uri, single_writer=True)).open_job(spec, {"task": "joint"})
    assert open_output(uri).single_writer


def test_a_job_of_several_writers_stays_one(ledger: Ledger) -> None:
    uri = ledger.storage.uri
    ledger.open_job(
        load_spec({"task": "joint", "input": {"uri": "/in.txt"}, "output": {"uri": uri}}), {"task": "joint"}
    )
    assert not open_output(uri).single_writer


ROOT = Path(__file__).parents[3]
OPENED_WITHOUT_ITS_JOB = {
    "pipelines/ledger/ledger.py": "open_output itself",
    "pipelines/dataset/validation/validate.py": "reads",
    "pipelines/dataset/diff.py": "reads",
    "pipelines/dataset/files.py": "reads",
    "pipelines/dataset/status.py": "reads",
    "pipelines/run/preview.py": "the preview, which writes nothing",
    "pipelines/dataset/garbage.py": "deletes, and writes nothing that must be created once",
    "pipelines/dataset/gallery/__init__.py": "writes only what is rewritten",
    "pipelines/dataset/export.py": "reads an output; what it writes is none",
    "pipelines/spec/quantiles.py": "reads",
    "pipelines/stages/readers/listing.py": "reads input",
    "pipelines/model/weights/store.py": "reads weights",
    "jobs/datasets.py": "reads leases",
    "jobs/validation.py": "reads",
    "jobs/demo.py": "local folders of its own",
}


def test_whoever_writes_to_an_output_opens_it_with_what_its_job_says() -> None:
    """`open_output`, and no `Storage` of its own: --single-writer holds for every command."""
    found = set()
    for file in [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(call, ast.Name) and call.id == "Storage" for call in calls):
            found.add(file.relative_to(ROOT).as_posix())
    assert found <= set(OPENED_WITHOUT_ITS_JOB), "open it with pipelines.ledger.ledger.open_output, or say why not here"
