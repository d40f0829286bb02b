"""A driver's lease shows other drivers that it is running.

Correctness rests on create-only commits; a lease only avoids duplicate work.

    _leases/<token>.json      one per driver: token, counter, host, process, start; rewritten every BEAT_SECONDS

Each driver rewrites its own object and deletes it at its end. A driver that is killed leaves its lease behind. Another
driver decides by watching whether a lease is live: its counter moves, or it has not moved for STALE_SECONDS of the
watcher's own monotonic clock. Clocks of two machines are never compared. Without any lease the answer is immediate. A
heartbeat that cannot be written is logged and never stops a run.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Literal, Self

from jointdit.errors import JointDiTError
from pipelines.ledger import names as ledger_names
from pipelines.ledger.entries import FORMAT, new_token, now, parse
from pipelines.store.storage import Storage

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # several heartbeats, because a throttled store delays some
POLL_SECONDS = 1.0
FOLDER = "_leases"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """The content of a lease."""

    token: str
    counter: int
    host: str
    process: int
    started: str  # by the driver's own clock, for people to read

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.started}"


State = Literal["unknown", "live", "stale"]


class Watch:
    """Tells live leases from stale ones by reading them repeatedly. It writes nothing."""

    def __init__(
        self,
        storage: Storage,
        own: str = "",
        stale_seconds: float = STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`own`: the token of a lease to ignore."""
        self.storage, self.own, self.stale_seconds, self.clock = storage, own, stale_seconds, clock
        self._moved: dict[
            str, tuple[int, float, bool]
        ] = {}  # token -> counter, time it was first seen, whether it moved
        self._reads = 0

    def read(self) -> list[tuple[Lease, State]]:
        """Return the leases and their states. The first read leaves all unknown; a lease that appears later is live."""
        leases = [lease for lease in read_leases(self.storage) if lease.token != self.own]
        now = self.clock()
        before, self._moved = self._moved, {}
        for lease in leases:
            counter, since, moved = before.get(lease.token, (None, now, False))
            if lease.counter != counter:
                since, moved = now, self._reads > 0
            self._moved[lease.token] = (lease.counter, since, moved)
        self._reads += 1
        return [(lease, self._state(lease.token, now)) for lease in leases]

    def _state(self, token: str, now: float) -> State:
        _, since, moved = self._moved[token]
        if now - since >= self.stale_seconds:
            return "stale"
        return "live" if moved else "unknown"


def find_live(
    storage: Storage, stale_seconds: float = STALE_SECONDS, poll_seconds: float = POLL_SECONDS
) -> Lease | None:
    """Return the lease of a driver that works on this output, or None.

    It takes up to `stale_seconds` where a killed driver left its lease. Stale leases are deleted; a driver that was
    only suspended writes its lease again.
    """
    watch = Watch(storage, stale_seconds=stale_seconds)
    while True:
        leases = watch.read()
        live = next((lease for lease, state in leases if state == "live"), None)
        if live is not None:
            return live
        if all(state == "stale" for _, state in leases):
            for lease, _ in leases:
                storage.delete(_name(lease.token))
            return None
        time.sleep(poll_seconds)


def read_leases(storage: Storage) -> list[Lease]:
    """Return all leases in no order. Unreadable leases and copies under another name are ignored."""
    leases = []
    for name in ledger_names.in_folder(storage, FOLDER):
        try:
            fields = parse(storage.read_bytes(_name(name["token"])), name[0])
            lease = Lease(**{key: fields[key] for key in Lease.__dataclass_fields__})
        except (FileNotFoundError, KeyError, JointDiTError):
            continue  # its driver has just ended, or another version of the code wrote it
        if lease.token == name["token"] and isinstance(lease.counter, int):
            leases.append(lease)
    return leases


class Heartbeat:
    """Holds a lease while a block runs, and logs when another driver is live."""

    def __init__(
        self,
        storage: Storage,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        note: Callable[[str], None] = logger.warning,
    ) -> None:
        self.storage, self.beat_seconds, self.note = storage, beat_seconds, note
        self.token = new_token()
        self._watch = Watch(storage, self.token, stale_seconds)
        self._started, self._counter = now(), 0
        self._reported: set[str] = set()  # tokens of the drivers that were logged
        self._has_failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self.beat_seconds)  # a store that hangs must not block the driver: the lease goes stale
        if not self._thread.is_alive():
            self._try(lambda: self.storage.delete(_name(self.token)))

    def _run(self) -> None:
        while not self._stop.wait(self.beat_seconds):
            self._beat()

    def _beat(self) -> None:
        self._counter += 1
        lease = Lease(self.token, self._counter, socket.gethostname(), os.getpid(), self._started)
        data = json.dumps({**asdict(lease), "format": FORMAT}).encode()
        self._try(lambda: self.storage.write_bytes(_name(self.token), data))
        self._try(self._check_others)

    def _check_others(self) -> None:
        for lease, state in self._watch.read():
            if state == "live" and lease.token not in self._reported:
                self._reported.add(lease.token)
                self.note(
                    f"another driver works on this output ({lease}): the dataset stays correct, work may be done twice."
                )
            elif state == "stale":
                self.storage.delete(_name(lease.token))

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (JointDiTError, OSError) as error:
            if not self._has_failed:
                logger.warning("the lease of this run cannot be written, so other drivers may not see it: %s", error)
            self._has_failed = True


def _name(token: str) -> str:
    return f"{FOLDER}/{token}.json"
