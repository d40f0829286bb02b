"""The steps of a process: calls of its store, before which it can wait for its turn, fail or die.

A step is a call of a `Storage` method, and within it each listing of a folder, link, rename and removal. So another
process can run between any two of them, and a kill can leave a half-written file. `take_control` is for a process that
performs one operation and ends. It also draws tokens from the seed, so that a history repeats.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pipelines.store.explain import explain
from pipelines.store.storage import Storage
from tests.chaos.turns import CREATE, STEP, TURNING

METHODS = ("read_bytes", "open", "info", "exists", "names", "unfinished", "list", "delete", "write_bytes")
METHODS += ("create_bytes", "probe")
SYSTEM_CALLS = ("scandir", "link", "replace", "remove", "unlink")


@dataclass(frozen=True)
class Death:
    """SIGKILL before or after the n-th step."""

    step: int
    after: bool = False


@dataclass(frozen=True)
class Failure:
    """An OSError at some steps; with `after` the call succeeds before the error."""

    step: int
    errno: int
    times: int = 1
    after: bool = False


class Steps:
    """Counts the steps of this process. `turn` is called before each step and returns when the process may continue.

    Its argument is the kind of the step: create-only writes, removals and listings of the ledger are turning points.
    """

    def __init__(
        self, turn: Callable[[bytes], None] | None = None, death: Death | None = None, failure: Failure | None = None
    ) -> None:
        self.turn, self.death, self.failure = turn, death, failure
        self.count = self.failed = 0
        self.inside = False  # whether a Storage method is running

    def take(self, call: Callable[[], Any], error_of: Callable[[OSError], Exception], kind: bytes = STEP) -> Any:
        """Take one step."""
        self.count += 1
        number = self.count
        if self.turn:
            self.turn(kind)
        self._die(number, after=False)
        self._fail(number, error_of, after=False)
        result = call()
        self._fail(number, error_of, after=True)
        self._die(number, after=True)
        return result

    def _die(self, number: int, after: bool) -> None:
        if self.death and self.death.step == number and self.death.after == after:
            os.kill(os.getpid(), signal.SIGKILL)

    def _fail(self, number: int, error_of: Callable[[OSError], Exception], after: bool) -> None:
        failure = self.failure
        if failure and failure.after == after and failure.step <= number < failure.step + failure.times:
            self.failed += 1
            raise error_of(OSError(failure.errno, os.strerror(failure.errno)))


def take_control(steps: Steps, seed: str) -> None:
    """Route the store's steps of this process through `steps`, draw tokens from `seed`, and skip sleeps."""
    draw = random.Random(seed)
    secrets.token_hex = lambda size=32: draw.randbytes(size).hex()  # type: ignore[assignment]
    time.sleep = lambda _seconds: None
    for name in METHODS:
        setattr(Storage, name, _method(steps, name, getattr(Storage, name)))
    for name in SYSTEM_CALLS:
        setattr(os, name, _system_call(steps, getattr(os, name)))


def _method(steps: Steps, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def stepped(self: Storage, *args: Any, **named: Any) -> Any:
        if steps.inside:
            return method(self, *args, **named)
        steps.inside = True
        try:
            about = str(args[0]) if args else ""
            error_of = functools.partial(explain, root=self.uri, name=about)
            return steps.take(lambda: method(self, *args, **named), error_of, _kind_of(name, about))
        finally:
            steps.inside = False

    return stepped


def _kind_of(method: str, about: str) -> bytes:
    if method == "create_bytes":
        return CREATE
    is_listing = method in ("names", "list") and about.startswith("_")
    return TURNING if method == "delete" or is_listing else STEP


def _system_call(steps: Steps, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def stepped(*args: Any, **named: Any) -> Any:
        if not steps.inside:
            return call(*args, **named)
        return steps.take(lambda: call(*args, **named), lambda error: error)

    return stepped


class OneThread:
    """A ThreadPoolExecutor that runs each call immediately in the calling thread."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> OneThread:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, call: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        return iter([call(*values) for values in zip(*arguments, strict=False)])

    def submit(self, call: Callable[..., Any], *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **named))
        except BaseException as error:  # noqa: BLE001 - as pools of threads do
            future.set_exception(error)
        return future


def use_one_thread() -> None:
    """Replace thread pools by OneThread in all imported modules of the engine."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines") and hasattr(module, "ThreadPoolExecutor"):
            module.ThreadPoolExecutor = OneThread  # type: ignore[attr-defined]
