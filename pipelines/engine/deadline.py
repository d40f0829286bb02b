"""Deadlines by which a task ends itself.

The driver cannot end it: a `ray.cancel` that races with the end of a task aborts the driver ("Tried to complete task
that was not pending", seen twice with Ray 2.60; github.com/ray-project/ray/pull/54798 explains such a race). So a
running task is never cancelled.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from pipelines.store.errors import TransientError

REPEATS = 10  # after the deadline, the block is interrupted again after each tenth of its seconds


class DeadlineExceeded(TransientError):
    """A task took too long, usually because a store does not answer."""


@contextlib.contextmanager
def deadline(seconds: float, action: str) -> Iterator[None]:
    """Raise DeadlineExceeded in the block after `seconds`, and end the process after twice as many.

    The exception is raised repeatedly, and once more at the end of a block that swallowed it, for code that waits for
    hung threads on its way out or takes any exception for a bad row. The process is ended for code that does not
    return to the interpreter, such as a C library that hangs. Only the main thread can be interrupted, and Ray runs
    tasks there; in other threads there is no deadline.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late = DeadlineExceeded(f"{action} took longer than {seconds:g} seconds.")
    expired = False

    def expire(number: int, frame: FrameType | None) -> None:
        nonlocal expired
        expired = True
        raise late

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds / REPEATS)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    if expired:
        raise late
