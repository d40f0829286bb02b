"""Remember the objects that passed a check, on this machine, so that a check that was interrupted can be resumed.

Objects are immutable: one that is named with the same path, size, hash and rows needs no second reading. What is kept
is a digest of these for each object, in a SQLite file in the user's cache folder, one for each output.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.ledger.entries import StoredObject, now
from pipelines.model.weights.local import cache_folder
from pipelines.store.safe_text import reason_of

WRITE_SECONDS = 1.0
CHECKS = 1  # of checks.py; raised when they find more
logger = logging.getLogger("pipelines")


class Passed:
    """The objects of one output that passed a check. Use it as a context manager.

    A file that cannot be written is reported once; then nothing is remembered.
    """

    def __init__(self, uri: str, is_resumed: bool) -> None:
        """`is_resumed`: whether what an earlier check found counts. Otherwise it is forgotten."""
        self.is_resumed = is_resumed
        self.path = state_file(uri)
        self.since = ""  # when the check that is resumed began; empty if there is none
        self._connection: sqlite3.Connection | None = None
        self._written = 0.0

    def __enter__(self) -> Self:
        with self._reporting():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.is_resumed:
                self.path.unlink(missing_ok=True)
            self._connection = sqlite3.connect(self.path)
            self._connection.execute("create table if not exists about (since text)")
            self._connection.execute(
                "create table if not exists passed (digest blob primary key, images integer) without rowid"
            )
            (self.since,) = self._connection.execute("select coalesce(min(since), '') from about").fetchone()
            if not self.since:
                self._connection.execute("insert into about values (?)", (now(),))
                self._connection.commit()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            with contextlib.closing(self._connection), contextlib.suppress(sqlite3.Error):
                self._connection.commit()
            self._connection = None

    def images_of(self, objects: Sequence[StoredObject]) -> dict[str, int]:
        """Return path -> number of images of those of some objects that passed."""
        found: dict[str, int] = {}
        with self._reporting():
            for stored in objects if self._connection is not None else ():
                assert self._connection is not None
                row = self._connection.execute("select images from passed where digest = ?", (digest_of(stored),))
                found.update((stored.path, images) for (images,) in row.fetchall())
        return found

    def add(self, objects: Iterable[tuple[StoredObject, int]]) -> None:
        """Remember objects that passed, with the number of their images."""
        with self._reporting():
            if self._connection is not None:
                rows = [(digest_of(stored), images) for stored, images in objects]
                self._connection.executemany("insert or replace into passed values (?, ?)", rows)
                if time.monotonic() - self._written >= WRITE_SECONDS:  # each one waits for the disk
                    self._connection.commit()
                    self._written = time.monotonic()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            logger.warning("%s cannot be used, so this check cannot be resumed: %s", self.path, reason_of(error))
            self.__exit__(None, None, None)


def state_file(uri: str) -> Path:
    """Return where the objects of an output that passed are remembered."""
    return cache_folder() / "validated" / f"{hashlib.sha256(uri.encode()).hexdigest()[:20]}.sqlite"


def digest_of(stored: StoredObject) -> bytes:
    """Return a digest of all that a check of an object depends on."""
    return hashlib.sha256(json.dumps([CHECKS, asdict(stored)]).encode()).digest()[:16]
