from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.dataset.validation.validate import validate
from pipelines.ledger.entries import sha256
from pipelines.quality.depth_range import DepthRange
from pipelines.run.rounds import pending_shards
from pipelines.stages.finish import finish_shard
from pipelines.stages.read import read_shard
from pipelines.store.errors import TransientError
from tests.chaos.proxy import FaultProxy
from tests.stand_in import StandInWorker


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3").make_bucket() + "/out"


def test_every_sample_ends_once_and_the_commit_names_what_was_written(make_job, output: str) -> None:
    quality = {"filters": [{"kind": "depth_range"}], "max_quarantined_fraction": 1.0}
    sections = {"quality": quality, "input": {"samples_per_row": 2}, "output": {"uri": output, "points": "ply"}}
    job = make_job(["good", "FLAT", "", "NAN"], **sections)
    job.plan()
    (receipt,) = job.run()
    storage = job.context.storage
    assert receipt.won
    assert receipt.counts == {"kept": 2, "rejected": 2, "quarantined": 4}
    assert receipt.reasons == {"depth_range": 2}
    assert receipt.example.startswith("prompts.txt:2/0: prompt is empty")
    commit = job.ledger.read_commit(receipt.shard)
    assert [(sample.id, sample.outcome) for sample in commit.samples] == [
        (f"prompts.txt:{row}/{index}", outcome)
        for row, outcome in enumerate(["kept", "rejected", "quarantined", "quarantined"])
        for index in (0, 1)
    ]
    written = {each.path: each for each in storage.list() if not each.path.startswith("_")}
    assert set(written) == {stored.path for stored in commit.objects}
    assert sorted(path.split("/")[0] for path in written) == [
        "data",
        "pointclouds",
        "pointclouds",
        "quarantine",
        "rejected",
    ]
    for stored in commit.objects:
        data = storage.read_bytes(stored.path)
        assert (len(data), sha256(data)) == (stored.bytes, stored.sha256)
        assert receipt.token in stored.path
    table = pq.read_table(io.BytesIO(storage.read_bytes(f"data/{receipt.shard}-{receipt.token}.parquet")))
    assert table["id"].to_pylist() == ["prompts.txt:0/0", "prompts.txt:0/1"]
    assert table["source"].to_pylist() == ["prompts.txt:0"] * 2
    assert all(storage.exists(path) for path in table["pointcloud"].to_pylist())


def test_the_second_attempt_deletes_its_own_objects(make_job, output: str) -> None:
    job = make_job(["a", "b"], output={"uri": output, "points": "ply"})
    job.plan()
    (entry,) = pending_shards(job.ledger)
    first = job.run_shard(entry)
    before = {each.path: each.etag for each in job.context.storage.list()}
    second = job.run_shard(entry)
    assert (first.won, second.won) == (True, False)
    assert second.token == first.token
    assert second.counts == first.counts
    assert {each.path: each.etag for each in job.context.storage.list()} == before


def test_depth_comes_back_at_the_images_own_size(make_job, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    photo = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    job = make_job(task="depth", input={"uri": str(folder)})
    version = job.complete()
    (row,) = pq.read_table(io.BytesIO(job.context.storage.read_bytes(version.files[0].path))).to_pylist()
    assert (row["width"], row["height"]) == (100, 70)
    assert Image.open(io.BytesIO(row["depth"]["bytes"])).size == (100, 70)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["rgb"]["bytes"]))), photo)


def test_the_condition_comes_back_as_it_was_given(make_job, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    disparity = np.linspace(0, 1, 70 * 100, dtype=np.float32).reshape(70, 100)
    np.save(folder / "map.npy", disparity)
    inputs = {"uri": str(folder), "prompt": "a cube", "depth": {"kind": "disparity", "invalid": None}}
    job = make_job(task="depth-to-image", input=inputs)
    version = job.complete()
    (row,) = pq.read_table(io.BytesIO(job.context.storage.read_bytes(version.files[0].path))).to_pylist()
    stored = np.asarray(Image.open(io.BytesIO(row["depth"]["bytes"])))
    np.testing.assert_allclose(stored, disparity * 65535.0, atol=0.51)  # a rounded 16-bit step
    assert Image.open(io.BytesIO(row["rgb"]["bytes"])).size == (100, 70)


def test_a_result_that_is_missing_is_never_committed(make_job) -> None:
    job = make_job(["a", "b"])
    job.plan()
    (entry,) = pending_shards(job.ledger)
    worker = StandInWorker(job.context, "cpu", 1)
    worker.set_up()
    rows, (part,) = read_shard(job.context, entry)
    results, _ = worker.generate(part)
    with pytest.raises(AssertionError, match="1 results for 2 samples"):
        finish_shard(job.context, entry, rows, results[:1])
    with pytest.raises(AssertionError, match="3 results for 2 samples"):
        finish_shard(job.context, entry, rows, results, results[:1])
    assert job.ledger.committed() == set()


def test_an_unreachable_store_is_a_transient_error(make_job, s3, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(["a"], output={"uri": s3.make_bucket() + "/out"})
    job.plan()
    (entry,) = pending_shards(job.ledger)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        job.context.storage._fs = None
        with pytest.raises(TransientError, match="cannot be reached"):
            job.run_shard(entry)
    job.context.storage._fs = None
    assert job.run_shard(entry).won


def results_of(job, entry):
    worker = StandInWorker(job.context, "cpu", 1)
    worker.set_up()
    rows, parts = read_shard(job.context, entry)
    return rows, [worker.generate(part)[0] for part in parts]


def quarantined(job, receipt) -> dict[str, str]:
    name = f"quarantine/{receipt.shard}-{receipt.token}.parquet"
    rows = pq.read_table(io.BytesIO(job.context.storage.read_bytes(name))).to_pylist()
    return {row["id"]: row["error"] for row in rows}


def test_a_sample_whose_filter_raises_is_quarantined_alone(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(["fine", "fine", "fine"])
    job.plan()
    (entry,) = pending_shards(job.ledger)
    measure = DepthRange.measure

    def fails_on_the_second(result):
        if result.sample.row.position == 1:
            raise ZeroDivisionError("a map without depth")
        return measure(result)

    monkeypatch.setattr(DepthRange, "measure", fails_on_the_second)
    receipt = job.run_shard(entry)
    assert receipt.counts == {"kept": 2, "rejected": 0, "quarantined": 1}
    assert quarantined(job, receipt) == {"prompts.txt:1/0": "scoring it failed, ZeroDivisionError: a map without depth"}


def test_samples_that_cannot_be_encoded_are_quarantined_alone(make_job) -> None:
    job = make_job(
        ["fine", "fine", "fine", "FLAT"], output={"points": "ply"}, quality={"filters": [{"kind": "depth_range"}]}
    )
    job.plan()
    (entry,) = pending_shards(job.ledger)
    rows, parts = results_of(job, entry)
    parts[0][1].rgb = np.zeros((32, 32, 3), np.uint16)  # no image
    parts[1][0].rgb = np.zeros((16, 32, 3), np.uint8)  # an image of another size than its depth: no points
    parts[1][0].disparity = np.linspace(0, 1, 32, dtype=np.float32)[:, None].repeat(32, axis=1)
    parts[1][1].rgb = np.zeros((32, 32, 3), np.uint16)  # a reject that cannot be encoded
    receipt = finish_shard(job.context, entry, rows, *parts)
    assert receipt.counts == {"kept": 1, "rejected": 0, "quarantined": 3}
    errors = quarantined(job, receipt)
    assert {name: error.split(",")[0] for name, error in errors.items()} == {
        "prompts.txt:1/0": "encoding it failed",
        "prompts.txt:2/0": "making its point cloud failed",
        "prompts.txt:3/0": "encoding it failed",
    }
    commit = job.ledger.read_commit(receipt.shard)
    written = {each.path for each in job.context.storage.list() if not each.path.startswith("_")}
    assert written == {stored.path for stored in commit.objects}, "no point cloud of a sample that has no row"
    assert [stored.rows for stored in commit.objects if stored.kind == "table"] == [1, 3]
    job.publish()
    assert validate(job.context.storage.uri).problems == []


def test_a_disk_that_is_full_is_no_rows_fault(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(["fine"])
    job.plan()
    (entry,) = pending_shards(job.ledger)

    def full(result):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DepthRange, "measure", full)
    with pytest.raises(TransientError, match=r"scoring it on .*: no space left on device\."):
        job.run_shard(entry)
    assert job.ledger.committed() == set()


def test_a_sample_that_kills_finish_is_quarantined_without_being_encoded(make_job) -> None:
    job = make_job(["fine", "fine"])
    job.plan()
    (entry,) = pending_shards(job.ledger)
    rows, parts = results_of(job, entry)
    receipt = finish_shard(job.context, entry, rows, *parts, unfinishable=frozenset({"prompts.txt:1/0"}))
    assert receipt.counts == {"kept": 1, "rejected": 0, "quarantined": 1}
    assert "the process died each time" in quarantined(job, receipt)["prompts.txt:1/0"]


def test_a_loser_whose_objects_cannot_be_deleted_is_still_a_loser(
    make_job, s3, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        job = make_job(["a"], output={"uri": s3.make_bucket() + "/out"})
        job.plan()
        (entry,) = pending_shards(job.ledger)
        first = job.run_shard(entry)
        proxy.inject("server-error", "DELETE", times=50)
        second = job.run_shard(entry)
        assert (second.won, second.token) == (False, first.token)
        assert proxy.counts["server-error"] > 0
        assert len(job.context.storage.list("data")) == 2, "garbage, until it is collected"
