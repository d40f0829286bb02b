"""Local files under failing system calls: messages, leftovers, and durability."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jointdit.errors import JointDiTError, StoreError
from pipelines.store import local_files
from pipelines.store.errors import CommitFailed, TransientError
from pipelines.store.storage import AlreadyExists, Storage

CALLS = ("link", "replace", "fsync", "open", "mkdir", "unlink", "remove", "rmdir", "stat", "scandir")
ERRORS = [getattr(errno, name) for name in (
    "EPERM", "EACCES", "EINVAL", "EMLINK", "ENAMETOOLONG", "ESTALE", "EIO", "ENOSPC", "EDQUOT", "EROFS", "ENOTSUP",
    "ENOSYS", "EXDEV", "ETIMEDOUT", "ENOTCONN", "EBADF", "EFBIG", "ELOOP", "EMFILE", "EBUSY", "ENOENT", "EEXIST",
)]  # fmt: skip
NAME, DATA = "_commits/deep/a.json", b'{"token": 1}'


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory, where flushing costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


class Faults:
    """While it is entered, the n-th call of a function of `os` fails, before or after it has done its work."""

    def __init__(self, call: str, code: int, number: int, is_done: bool) -> None:
        self.call, self.code, self.is_done = call, code, is_done
        self.left, self.made = number, 0

    def __enter__(self) -> None:
        self.real = getattr(os, self.call)
        setattr(os, self.call, self.failing)

    def __exit__(self, *_: object) -> None:
        setattr(os, self.call, self.real)

    def __str__(self) -> str:
        return f"{self.call} {errno.errorcode[self.code]}{', done' if self.is_done else ''}"

    def failing(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left:
            return self.real(*arguments, **options)
        self.made += 1
        if self.is_done:
            found = self.real(*arguments, **options)
            if self.call == "open":
                os.close(found)
            elif self.call == "scandir":
                found.close()
        raise OSError(self.code, os.strerror(self.code))


def every_fault(root: Path) -> Iterator[tuple[Storage, Faults]]:
    """Each call failing in each way, each in a storage of its own; the loop's body must enter the faults."""
    places = itertools.count()
    for call, code, is_done in itertools.product(CALLS, ERRORS, (False, True)):
        for number in range(1, 30):
            faults = Faults(call, code, number, is_done)
            yield Storage(str(root / str(next(places)) / "out")), faults
            if not faults.made:
                break


def outcome_of(faults: Faults, step: Callable[[], object]) -> Exception | None:
    """What a user is told; anything but an error of ours fails the test."""
    try:
        with faults:
            step()
    except (JointDiTError, AlreadyExists) as error:
        text = str(error)
        assert "\n" not in text, faults
        assert text.endswith("."), faults
        assert "Error" not in text, f"{faults}: a name of Python's in {text}"
        return error
    return None


def files_of(storage: Storage) -> dict[str, bytes]:
    files = (path for path in Path(storage.uri).rglob("*") if path.is_file())
    return {str(path.relative_to(storage.uri)): path.read_bytes() for path in files}


@pytest.mark.parametrize("write", ["create_bytes", "write_bytes"])
def test_a_write_whose_system_calls_fail_is_whole_or_not_there_and_says_so(write: str, root: Path) -> None:
    outcomes: Counter[str] = Counter()
    for storage, faults in every_fault(root):
        outcome = outcome_of(faults, lambda storage=storage: getattr(storage, write)(NAME, DATA))
        found = files_of(storage)
        case = f"{faults}: {outcome!r}, {sorted(found)}"
        assert isinstance(outcome, StoreError | TransientError | None), case
        assert found.get(NAME, DATA) == DATA, case
        assert outcome is not None or NAME in found, case
        assert not isinstance(outcome, CommitFailed) or NAME not in found, case
        assert faults.call == "unlink" or set(found) <= {NAME}, case
        outcomes[type(outcome).__name__] += faults.made
    kinds = (
        {"StoreError", "CommitFailed", "CommitUnknown"} if write == "create_bytes" else {"StoreError", "TransientError"}
    )
    assert set(outcomes) == {*kinds, "NoneType"}
    assert min(outcomes.values()) > 5, "each way to end is met"


def test_a_probe_whose_system_calls_fail_leaves_nothing(root: Path) -> None:
    outcomes: Counter[str] = Counter()
    for storage, faults in every_fault(root):
        outcome = outcome_of(faults, storage.probe)
        found = files_of(storage)
        assert faults.call in ("unlink", "remove") or not found, f"{faults}: {outcome!r}, {sorted(found)}"
        outcomes[type(outcome).__name__] += faults.made
    assert outcomes["StoreError"] > 100


@pytest.mark.parametrize("read", ["exists", "list", "names", "read_bytes", "unfinished"])
def test_a_read_whose_system_calls_fail_is_one_sentence(read: str, root: Path) -> None:
    outcomes: Counter[str] = Counter()
    for storage, faults in every_fault(root):
        storage.write_bytes(NAME, DATA)
        with contextlib.suppress(FileNotFoundError):
            name = NAME if read in ("exists", "read_bytes") else "_commits"
            outcome = outcome_of(faults, lambda storage=storage, name=name: getattr(storage, read)(name))
            outcomes[type(outcome).__name__] += faults.made
    assert outcomes["StoreError"] > 5


def fail_after(patch: pytest.MonkeyPatch, call: str, code: int) -> list[Any]:
    """A network file system repeats a request whose answer was lost, and gives the answer to the repetition."""
    real, calls = getattr(os, call), []

    def repeated(*arguments: Any) -> None:
        real(*arguments)
        calls.append(arguments)
        raise OSError(code, os.strerror(code), *arguments[:1])

    patch.setattr(os, call, repeated)
    return calls


def test_a_repeated_link_that_finds_its_own_work_has_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fail_after(monkeypatch, "link", errno.EEXIST)
    Storage(str(tmp_path)).create_bytes("commit", b"ours")
    assert len(calls) == 1
    assert files_of(Storage(str(tmp_path))) == {"commit": b"ours"}


def test_a_repeated_rename_that_finds_its_own_work_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a", b"old")
    calls = fail_after(monkeypatch, "replace", errno.ENOENT)
    storage.write_bytes("a", b"new")
    assert len(calls) == 1
    assert files_of(storage) == {"a": b"new"}


def test_a_rename_that_lost_its_file_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a", b"old")
    real = os.replace

    def without(temporary: str, final: str) -> None:
        os.unlink(temporary)  # by a program that tidies up
        real(temporary, final)

    monkeypatch.setattr(os, "replace", without)
    with pytest.raises(TransientError, match=r"/a: its folder was removed while it was written\.$"):
        storage.write_bytes("a", b"new")
    assert files_of(storage) == {"a": b"old"}


@pytest.mark.parametrize("code", local_files.NO_HARD_LINKS)
def test_a_file_system_without_hard_links(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    sentence = rf"has no hard links \({errno.errorcode[code]}\), so nothing there can be created only once: use another"
    with pytest.raises(StoreError, match=sentence):
        Storage(str(tmp_path)).probe()
    single = Storage(str(tmp_path), single_writer=True)
    single.probe()
    single.create_bytes("commit", b"first")
    with pytest.raises(AlreadyExists):
        single.create_bytes("commit", b"second")
    assert files_of(single) == {"commit": b"first"}


@pytest.mark.parametrize("code", local_files.NO_FOLDER_FLUSH)
def test_a_file_system_that_does_not_flush_folders_is_used_and_said(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = Storage(str(tmp_path))
    storage.probe()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: this file system does not flush folders: a power cut may undo commits"
    ]
    storage.create_bytes("commit", b"x")
    storage.write_bytes("table", b"x")
    assert files_of(storage) == {"commit": b"x", "table": b"x"}


@pytest.mark.parametrize("write", ["write_bytes", "create_bytes"])
def test_a_new_folder_has_its_name_on_disk_before_anything_is_in_it(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut takes the folder away, and the commit that was flushed in it."""
    events: list[tuple[str, str]] = []
    mkdir, fsync = os.mkdir, os.fsync

    def made(path: str, *options: Any) -> None:
        mkdir(path, *options)
        events.append(("made", os.fspath(path)))

    def flushed(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("flushed", os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "mkdir", made)
    monkeypatch.setattr(os, "fsync", flushed)
    getattr(Storage(str(tmp_path / "new" / "out")), write)("pointclouds/a/b.ply", b"x")
    folders = [str(tmp_path / each) for each in ("new", "new/out", "new/out/pointclouds", "new/out/pointclouds/a")]
    assert [path for event, path in events if event == "made"] == folders
    file = next(place for place, (event, path) in enumerate(events) if event == "flushed" and path.endswith("b.ply"))
    for folder in folders:
        made_at = events.index(("made", folder))
        assert ("flushed", os.path.dirname(folder)) in events[made_at:file]
    assert ("flushed", folders[-1]) in events[file:]


@contextlib.contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_what_the_kernel_itself_refuses_is_one_sentence(tmp_path: Path) -> None:
    """No injected fault: names, links and limits that a real file system answers to."""
    storage = Storage(str(tmp_path))
    with pytest.raises(StoreError, match=r": file name too long \(ENAMETOOLONG\): give a shorter path\.$"):
        storage.write_bytes("x" * 300, b"x")
    with pytest.raises(StoreError, match=r"\(ENAMETOOLONG\)"):
        Storage(str(tmp_path / ("x/" * 2500))).probe()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreError, match=r"\(ELOOP\): a link leads back to itself, remove it\.$"):
        storage.read_bytes("loop/a")
    with limited(resource.RLIMIT_FSIZE, 100), pytest.raises(StoreError, match=r"\(EFBIG\): choose another file system"):
        storage.write_bytes("large", bytes(101))
    storage.write_bytes("small", b"x")
    with (
        limited(resource.RLIMIT_NOFILE, 3),
        pytest.raises(TransientError, match=r"\(EMFILE\): raise the limit of open files"),
    ):
        storage.read_bytes("small")
    assert storage.names("") == ["small"]


def test_special_files_are_no_objects(tmp_path: Path) -> None:
    """Opening a pipe waits for a writer, for ever."""
    storage = Storage(str(tmp_path))
    storage.write_bytes("data/a", b"x")
    (tmp_path / "data" / "link").symlink_to("a")
    os.mkfifo(tmp_path / "data" / "pipe")
    (tmp_path / "data" / "broken").symlink_to("nowhere")
    (tmp_path / "data" / "loop").symlink_to("loop")
    (tmp_path / "data" / "up").symlink_to("..")
    (tmp_path / "data" / "null").symlink_to("/dev/null")
    (tmp_path / "data" / "tty").symlink_to("/dev/tty")
    assert [each.path for each in storage.list()] == ["data/a", "data/link"]
    assert storage.names("data") == ["a", "link"]
    assert storage.names("data", everything=True) == ["a", "broken", "link", "loop", "null", "pipe", "tty", "up"]
    for name in ("pipe", "null", "up"):
        assert not storage.exists(f"data/{name}")
        for read in (storage.read_bytes, storage.open):
            with pytest.raises(StoreError, match=rf"/data/{name} is no regular file: move it away\.$"):
                read(f"data/{name}")


def test_files_that_are_not_utf8_are_listed_and_deleted(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with open(os.fsencode(tmp_path) + b"/\xff\n.bin", "wb") as file:
        file.write(b"x")
    (found,) = storage.list()
    assert storage.names("") == [found.path] == ["\udcff\n.bin"]
    assert storage.read_bytes(found.path) == b"x"
    storage.delete(found.path)
    assert storage.list() == []
