"""Weights in a bucket of a real S3 server: pinned by ETag, checked by hash, downloaded once a node, resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import signal
from pathlib import Path

import pytest

from jointdit.errors import ModelError
from pipelines.model.identity import check_weights, identify
from pipelines.model.loading import load_pipeline, local_model
from pipelines.model.weights import store
from pipelines.model.weights.local import cache_folder, checkpoint_folder
from pipelines.model.weights.node_cache import key_of, local_path
from pipelines.model.weights.pins import Pin, pin
from pipelines.spec.job import ModelSpec
from pipelines.store.storage import Storage
from tests.s3_server import S3Server

BLOCK = 1 << 16
CONTENT = {
    "model_index.json": b'{"default_height": 48, "default_width": 32}',
    "transformer/model.safetensors": random.Random(1).randbytes(6 * BLOCK),
    "vae/vae.safetensors": random.Random(2).randbytes(3 * BLOCK + 5),
    "vae/vae.bin": pickle.dumps({}),
    "README.md": b"---\nlicense: apache-2.0\n---\n",
}
LARGE = "transformer/model.safetensors"


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("JOINTDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "BLOCK_BYTES", BLOCK)
    storage = Storage(f"{s3.make_bucket('weights')}/model")
    for name, data in CONTENT.items():
        storage.write_bytes(name, data)
    return storage


def pinned(storage: Storage) -> Pin:
    return pin("model.name", storage.uri, "pipeline")


def in_a_process(target: object, *arguments: object) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join(60)
    return process.exitcode


def test_a_folder_comes_whole_and_checked(bucket: Storage) -> None:
    one = pinned(bucket)
    assert {file.digest.partition(":")[0] for file in one.files} == {"md5"}
    assert one.terms.license == "apache-2.0"
    assert identify(ModelSpec(name=bucket.uri)).height == 48
    folder = local_path(one)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: data for name, data in CONTENT.items() if not name.endswith(".bin")}
    bucket.delete(LARGE)
    assert local_path(one) == folder  # nothing is asked of the store for what is here
    (folder / LARGE).write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"model.safetensors was deleted after it was pinned: restore it"):
        local_path(one)


def test_a_scheduler_and_an_adapters_json_come_along_and_leave_the_identity(bucket: Storage) -> None:
    """The fingerprint has what they say, so outputs that were started without them keep their weights."""
    names = ("scheduler/scheduler_config.json", "adapters/a.json")
    bucket.write_bytes("adapters/a.safetensors", b"x" * 16)

    def both() -> tuple[Pin, Pin]:
        return pinned(bucket), pin("model.adapter", f"{bucket.uri}/adapters/a.safetensors", "adapter")

    before = both()
    for name in names:
        bucket.write_bytes(name, b"{}")
    after = both()
    assert [each.weights for each in after] == [each.weights for each in before]
    folder, adapter = (local_path(each) for each in after)
    assert (folder / names[0]).read_bytes() == adapter.with_suffix(".json").read_bytes() == b"{}"


def test_an_object_of_several_parts_is_checked_by_their_hashes(bucket: Storage) -> None:
    data = random.Random(3).randbytes(11 * 2**20)
    bucket.fs.pipe_file(bucket.path(LARGE), data, chunksize=5 * 2**20)
    one = pinned(bucket)
    (large,) = (file for file in one.files if file.name == LARGE)
    assert large.digest.startswith(f"md5-parts:{5 * 2**20}:")
    assert (local_path(one) / LARGE).read_bytes() == data


def die_after(number: int, pickled: bytes) -> None:
    """Download until `number` blocks have arrived, then die as by the kernel."""
    store.BLOCK_BYTES, read, left = BLOCK, store.read_range, [number]

    def counted(*arguments: object) -> bytes:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return read(*arguments)  # type: ignore[arg-type]

    store.read_range = counted  # type: ignore[assignment]
    local_path(pickle.loads(pickled))


def test_a_killed_download_leaves_nothing_half_and_goes_on(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pinned(bucket)
    assert in_a_process(die_after, 4, pickle.dumps(one)) == -signal.SIGKILL
    assert not (cache_folder() / "weights").exists()
    partial = cache_folder() / "partial" / key_of(one)
    kept = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    assert kept > 0
    fetched = []
    read = store.read_range

    def counted(storage: Storage, name: str, start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return read(storage, name, start, stop)

    monkeypatch.setattr(store, "read_range", counted)
    assert (local_path(one) / LARGE).read_bytes() == CONTENT[LARGE]
    assert sum(fetched) == one.bytes - kept
    assert not partial.exists()


def test_a_spoilt_start_is_found_by_its_hash(bucket: Storage) -> None:
    one = pinned(bucket)
    partial = cache_folder() / "partial" / key_of(one) / LARGE
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"\0" * BLOCK)  # as a disk that lost power keeps it
    assert (local_path(one) / LARGE).read_bytes() == CONTENT[LARGE]


def test_an_object_that_changed_after_the_plan_is_refused(bucket: Storage) -> None:
    one = pinned(bucket)
    bucket.write_bytes(LARGE, CONTENT[LARGE][::-1])
    with pytest.raises(ModelError, match=rf"^model.name {bucket.uri}: {LARGE} has changed since it was pinned"):
        local_path(one)
    assert not (cache_folder() / "weights").exists()
    assert pinned(bucket).weights != one.weights


def download_counted(pickled: bytes, folder: str, name: str) -> None:
    """Download, and write down how many bytes came."""
    store.BLOCK_BYTES, read, fetched = BLOCK, store.read_range, []

    def counted(storage: Storage, file: str, start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return read(storage, file, start, stop)

    store.read_range = counted
    local_path(pickle.loads(pickled))
    Path(folder, name).write_text(str(sum(fetched)))


def test_two_workers_of_a_node_download_once(bucket: Storage, tmp_path: Path) -> None:
    one = pinned(bucket)
    context = multiprocessing.get_context("spawn")
    arguments = [(pickle.dumps(one), str(tmp_path), name) for name in ("one", "two")]
    both = [context.Process(target=download_counted, args=each) for each in arguments]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    fetched = sorted(int((tmp_path / name).read_text()) for name in ("one", "two"))
    assert fetched == [0, one.bytes]


@pytest.mark.slow
def test_the_packaged_checkpoint_from_a_bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its headers are checked without its weights, it loads from the cache, and its numbers are the same."""
    monkeypatch.setenv("JOINTDIT_CACHE", str(tmp_path / "cache"))
    storage, folder = Storage(f"{s3.make_bucket('weights')}/tiny"), checkpoint_folder("tiny")
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(path.relative_to(folder).as_posix(), path.read_bytes())
    model = ModelSpec(name=storage.uri, dtype="float32")
    identity = identify(model)
    assert (identity.height, identity.width) == (128, 128)
    check_weights(model, identity.pins)
    assert not (tmp_path / "cache" / "weights").exists()
    loaded = load_pipeline(local_model(model, identity.pins), "cpu").transformer.state_dict()
    expected = load_pipeline(ModelSpec(), "cpu").transformer.state_dict()
    assert all((loaded[name] == tensor).all() for name, tensor in expected.items())

    index = json.loads(storage.read_bytes("transformer/config.json"))
    storage.write_bytes("transformer/config.json", json.dumps({**index, "num_layers": 3}).encode())
    with pytest.raises(ModelError, match=rf"^{storage.uri}/transformer: tensor transformer_blocks.2\S+ .* is missing"):
        check_weights(model)
