from __future__ import annotations

import multiprocessing
import os
import pickle
import stat
import threading
import time
from pathlib import Path

import pytest

from jointdit.errors import StoreError
from pipelines.store.errors import TransientError
from pipelines.store.explain import mask_secrets
from pipelines.store.storage import AlreadyExists, Storage, etag_of, for_input, uri_of

RACES = 40


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "store"))
    return Storage(request.getfixturevalue("s3").make_bucket("storage") + "/a/prefix")


def test_reads_back_what_was_written(storage: Storage) -> None:
    storage.write_bytes("data/one.bin", b"one")
    storage.write_bytes("data/deep/two.bin", b"two")
    storage.write_bytes("data/one.bin", b"one again")
    assert storage.read_bytes("data/one.bin") == b"one again"
    assert [(f.path, f.size) for f in storage.list("data")] == [("data/deep/two.bin", 3), ("data/one.bin", 9)]
    assert storage.names("data") == ["deep/two.bin", "one.bin"]
    assert storage.info("data/one.bin").size == 9
    assert abs(storage.info("data/one.bin").modified - time.time()) < 60
    with storage.open("data/deep/two.bin") as file:
        file.seek(1)
        assert file.read() == b"wo"
    storage.delete("data/one.bin")
    storage.delete("data/one.bin")
    assert not storage.exists("data/one.bin")
    assert storage.exists("data/deep/two.bin")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("data/one.bin")


def test_a_folder_that_does_not_exist_lists_empty(storage: Storage) -> None:
    assert storage.list("nothing/here") == []


def test_create_is_refused_the_second_time(storage: Storage) -> None:
    storage.create_bytes("_commits/a.json", b'{"token": 1}')
    with pytest.raises(AlreadyExists):
        storage.create_bytes("_commits/a.json", b'{"token": 2}')
    assert storage.read_bytes("_commits/a.json") == b'{"token": 1}'


def test_our_own_bytes_found_in_the_way_are_a_success_on_s3(s3) -> None:
    """A lost response makes the client's own retry meet its own object."""
    storage = Storage(s3.make_bucket() + "/lost")
    storage.write_bytes("commit.json", b"ours")
    storage.create_bytes("commit.json", b"ours")
    with pytest.raises(AlreadyExists):
        storage.create_bytes("commit.json", b"theirs")


def test_a_large_object_is_created_in_one_request(s3) -> None:
    """The ETag of what was sent in parts ends in their number."""
    storage = Storage(s3.make_bucket())
    storage.create_bytes("outcomes", bytes(2 * 50 * 2**20))
    assert "-" not in storage.info("outcomes").etag
    with pytest.raises(AlreadyExists):
        storage.create_bytes("outcomes", b"of another")


def test_empty_objects_cannot_be_created_only_once(storage: Storage) -> None:
    with pytest.raises(AssertionError, match="empty"):
        storage.create_bytes("empty", b"")


def test_the_probe_leaves_nothing(storage: Storage) -> None:
    storage.probe()
    assert storage.list() == []


def test_names_cannot_leave_the_storage(storage: Storage) -> None:
    for name in ("../outside", "/etc/passwd", "a/../../b"):
        with pytest.raises(StoreError, match="leads out of it"):
            storage.read_bytes(name)


def test_it_travels_by_pickle_without_its_connection(storage: Storage) -> None:
    storage.write_bytes("a", b"a")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("a") == b"a"


def _race(uri: str, barrier, wins, racer: int) -> None:
    storage = Storage(uri)
    storage.exists("warm-up")
    for race in range(RACES):
        barrier.wait()
        try:
            storage.create_bytes(f"race/{race}", f"racer {racer}".encode())
            wins.put((race, racer))
        except AlreadyExists:
            pass


def test_two_processes_never_both_win(storage: Storage) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(storage.uri, barrier, wins, racer)) for racer in (1, 2)]
    for racer in racers:
        racer.start()
    won = dict([wins.get(timeout=40) for _ in range(RACES)])
    for racer in racers:
        racer.join(timeout=20)
        assert racer.exitcode == 0
    assert wins.empty()
    assert sorted(won) == list(range(RACES))
    for race, racer in won.items():
        assert storage.read_bytes(f"race/{race}") == f"racer {racer}".encode()
    assert len(storage.list("race")) == RACES


def test_local_create_leaves_no_half_file_behind(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.create_bytes("x", b"x" * 1000)
    with pytest.raises(AlreadyExists):
        storage.create_bytes("x", b"y")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("write", ["write_bytes", "create_bytes"])
def test_a_local_object_has_its_name_on_disk_before_its_writer_goes_on(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is an entry of its folder, which a power cut loses unless the folder is flushed after it was made."""
    real = os.fsync
    flushed: list[list[str]] = []  # what was in the folder each time

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            flushed.append(os.listdir(descriptor))

    monkeypatch.setattr(os, "fsync", fsync)
    getattr(Storage(str(tmp_path)), write)("data/rows.parquet", b"rows")
    assert any("rows.parquet" in names for names in flushed)


def test_a_listing_is_whole_while_others_write(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for number in range(50):
        storage.create_bytes(f"_commits/{number}.json", b"{}")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            storage.write_bytes("_commits/busy.json", b"{}")
            storage.delete("_commits/busy.json")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            assert {f"{number}.json" for number in range(50)} <= set(storage.names("_commits"))
    finally:
        stop.set()
        writer.join()


def test_a_folder_that_another_has_just_left_empty_is_made_again(tmp_path: Path, monkeypatch) -> None:
    """Two drivers that probe at the same time: each removes the folder that the other is about to write into."""
    made: list[Path] = []
    mkdir = Path.mkdir

    def overtaken(folder: Path, **options: bool) -> None:
        mkdir(folder, **options)
        if len(made) < 3:
            os.rmdir(folder)
        made.append(folder)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    Storage(str(tmp_path)).create_bytes("_probe/a", b"x")
    assert len(made) == 4
    assert (tmp_path / "_probe" / "a").read_bytes() == b"x"


def test_deleting_the_last_object_leaves_no_folder(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("pointclouds/x/0.ply", "pointclouds/x/1.ply"):
        storage.write_bytes(name, b"x")
    storage.delete("pointclouds/x/0.ply")
    assert storage.names("pointclouds") == ["x/1.ply"]
    storage.delete("pointclouds/x/1.ply")
    assert not (tmp_path / "pointclouds" / "x").exists()


def test_a_missing_bucket_is_one_sentence(s3) -> None:
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket/x: the bucket no-such-bucket does not exist: create"):
        Storage("s3://no-such-bucket/x").probe()


def test_no_access_is_one_sentence(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.make_bucket()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret)
    storage = Storage(bucket)
    with pytest.raises(StoreError, match=r"no access \(AccessDenied\): check that this user may"):
        storage.probe()


def test_a_wrong_secret_is_one_sentence_without_it(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.make_bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "completely-wrong-secret")
    with pytest.raises(StoreError, match=r"no access \(SignatureDoesNotMatch\)") as caught:
        Storage(bucket).probe()
    assert "completely-wrong-secret" not in str(caught.value)


def test_a_dead_endpoint_fails_in_seconds_and_says_where(s3_environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"http://127.0.0.1:9 cannot be reached: check AWS_ENDPOINT_URL"):
        Storage("s3://bucket/x").probe()
    assert time.monotonic() - started < 20


def test_a_dead_endpoint_in_the_middle_of_a_run_is_worth_another_try(s3_environment, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TransientError, match="cannot be reached"):
        Storage("s3://bucket/x").read_bytes("y")


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("memory://x", "memory:// lives in one process"),
        ("ftp://host/x", "ftp:// is not a supported store"),
        ("s3://", "names no folder or bucket"),
        ("", "names no folder or bucket"),
    ],
)
def test_stores_that_cannot_be_used(uri: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence):
        Storage(uri)


def test_a_file_where_the_output_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="a file is where a folder is needed"):
        Storage(str(tmp_path / "file")).probe()


def test_a_single_writer_can_do_without_a_fence(s3) -> None:
    storage = Storage(s3.make_bucket() + "/single", single_writer=True)
    storage.probe()
    storage.create_bytes("a", b"first")
    storage.create_bytes("a", b"first")
    with pytest.raises(AlreadyExists):
        storage.create_bytes("a", b"second")


def test_an_input_version_changes_with_its_content(storage: Storage) -> None:
    def version() -> str:
        fs, path = for_input(storage.uri_of("in.txt"))
        info = fs.info(path)
        assert uri_of(fs, info["name"]) == storage.uri_of("in.txt")
        return etag_of(info)

    storage.write_bytes("in.txt", b"a row")
    first = version()
    assert first == version()
    storage.write_bytes("in.txt", b"another row")
    assert version() != first


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefgh12345678")
    text = mask_secrets("key AKIAABCDEFGHIJKLMNOP secret abcdefgh12345678 url?X-Amz-Signature=deadbeef&x=1")
    assert text == "key *** secret *** url?X-Amz-Signature=***&x=1"
