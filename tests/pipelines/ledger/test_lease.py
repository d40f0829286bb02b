"""Leases show that a driver is running. tests/integration covers runs without them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jointdit.errors import StoreError
from pipelines.ledger.lease import FOLDER, Heartbeat, Watch, find_live, read_leases
from pipelines.store.storage import Storage

ROOT = Path(__file__).parents[3]
BEAT = 0.05
HOLDER = """
import sys, threading
from pipelines.ledger.lease import Heartbeat
from pipelines.store.storage import Storage
with Heartbeat(Storage(sys.argv[1]), beat_seconds=0.05):
    print("held", flush=True)
    threading.Event().wait()
"""


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "out"))
    return Storage(request.getfixturevalue("s3").make_bucket("lease") + "/out")


class Clock:
    """A watcher's own clock."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def states(watch: Watch) -> list[str]:
    return [state for _, state in watch.read()]


def test_a_counter_that_moves_is_live_and_one_that_does_not_goes_stale(tmp_path: Path) -> None:
    storage, clock = Storage(str(tmp_path)), Clock()
    driver = Heartbeat(storage)  # not entered: the test is its thread
    driver._beat()
    watch = Watch(storage, stale_seconds=60, clock=clock)
    assert states(watch) == ["unknown"]
    clock.now += 59
    assert states(watch) == ["unknown"]
    driver._beat()
    assert states(watch) == ["live"]
    clock.now += 59
    assert states(watch) == ["live"]
    clock.now += 1
    assert states(watch) == ["stale"]
    driver._beat()  # it had only slept
    assert states(watch) == ["live"]


def test_a_lease_that_appears_under_the_watchers_eyes_is_live(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    watch = Watch(storage)
    assert states(watch) == []
    Heartbeat(storage)._beat()
    assert states(watch) == ["live"]


def test_the_watchers_clock_decides_and_not_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, clock = Storage(str(tmp_path)), Clock()
    monkeypatch.setattr("pipelines.ledger.lease.now", lambda: "1999-01-01T00:00:00+00:00")  # a machine without a clock
    driver = Heartbeat(storage)
    driver._beat()
    watch = Watch(storage, stale_seconds=60, clock=clock)
    watch.read()
    driver._beat()
    assert states(watch) == ["live"]


def test_nobody_at_work_is_known_at_once(storage: Storage) -> None:
    started = time.monotonic()
    assert find_live(storage, stale_seconds=1000) is None
    assert time.monotonic() - started < 5


def test_a_lease_is_there_while_the_block_runs_and_gone_after(storage: Storage) -> None:
    with Heartbeat(storage, beat_seconds=BEAT) as held:
        found = find_live(storage, stale_seconds=50, poll_seconds=BEAT)
        assert found is not None
        assert found.token == held.token
    assert storage.list(FOLDER) == []
    if storage.is_local:
        assert not Path(storage.path(FOLDER)).exists()


def test_the_lease_of_a_killed_driver_is_stale_and_tidied_away(storage: Storage) -> None:
    command = [sys.executable, "-c", HOLDER, storage.uri]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "held\n"
            live = find_live(storage, stale_seconds=50, poll_seconds=BEAT)
            assert live is not None
            assert live.process == driver.pid
        finally:
            driver.kill()
    assert [lease.token for lease in read_leases(storage)] == [live.token], "SIGKILL leaves it"
    assert find_live(storage, stale_seconds=1.0, poll_seconds=BEAT) is None
    assert storage.list(FOLDER) == []


class ReadOnly(Storage):
    """A store that lists and reads, and refuses to write."""

    def write_bytes(self, name: str, data: bytes) -> None:
        raise StoreError(f"{self.uri}: no access (AccessDenied).")


@pytest.mark.parametrize("broken", ["nothing can be written", "nothing can be listed"])
def test_a_heartbeat_that_cannot_be_written_stops_nothing(
    broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if broken == "nothing can be listed":
        (tmp_path / FOLDER).write_text("a file where the folder should be")
    storage = ReadOnly(str(tmp_path)) if broken == "nothing can be written" else Storage(str(tmp_path))
    with caplog.at_level(logging.WARNING), Heartbeat(storage, beat_seconds=0.001) as held:
        while held._counter < 5:
            time.sleep(0)
    told = [record for record in caplog.records if "the lease of this run cannot be written" in record.getMessage()]
    assert len(told) == 1, "once, and not with each beat"


def test_drivers_are_told_of_each_other_once_and_of_nobody_else(storage: Storage) -> None:
    notes: list[str] = []
    with (
        Heartbeat(storage, beat_seconds=BEAT) as first,
        Heartbeat(storage, beat_seconds=BEAT, note=notes.append) as second,
    ):
        deadline = time.monotonic() + 30
        while not notes and time.monotonic() < deadline:
            time.sleep(BEAT)
        beats = second._counter
        while second._counter < beats + 5:
            time.sleep(BEAT)
    assert len(notes) == 1
    assert "another driver works on this output (process" in notes[0]
    assert first.token != second.token


def test_a_damaged_lease_is_none(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes(f"{FOLDER}/x.json", b"{")
    assert find_live(storage, stale_seconds=1000) is None


DAMAGED = {
    "a copy of a lease": lambda lease: json.dumps({**lease, "counter": 7}),
    "another type of counter": lambda lease: json.dumps({**lease, "token": "ab" * 8, "counter": "7"}),
    "no field": lambda lease: json.dumps({"format": 1}),
    "a path for a token": lambda lease: json.dumps({**lease, "token": "../../_job"}),
    "nested too deep": lambda _: "[" * 100_000,
    "no text": lambda _: "\udcff\udcfe",
    "empty": lambda _: "",
}


@pytest.mark.parametrize(
    "name", ["abababababababab.json", "0123 (copy).json", "._abab.json", "abab.json.part", "x.json"]
)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_strange_file_among_the_leases_is_nobody_at_work(damage: str, name: str, tmp_path: Path) -> None:
    """A copy that does not move beside a lease that does looks like a counter that moves at each look."""
    storage, clock = Storage(str(tmp_path)), Clock()
    driver = Heartbeat(storage)
    driver._beat()
    (path,) = (tmp_path / FOLDER).iterdir()
    data = DAMAGED[damage](json.loads(path.read_text()))
    (tmp_path / FOLDER / name).write_bytes(data.encode("utf-8", "surrogateescape"))
    watch = Watch(storage, stale_seconds=60, clock=clock)
    assert states(watch) == ["unknown"]
    clock.now += 30
    assert states(watch) == ["unknown"]
    assert find_live(storage, stale_seconds=0, poll_seconds=BEAT) is None
    assert [each.name for each in (tmp_path / FOLDER).iterdir()] == [name], "only the stale lease is tidied away"
