"""A task that takes too long ends itself.

The driver cannot end it: a `ray.cancel` that races with the end of a task aborts the driver ("Tried to complete task
that was not pending", met twice with Ray 2.60; github.com/ray-project/ray/pull/54798 explains such a race). So nothing
here is ever cancelled.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from pipelines.store.errors import TransientError

AGAIN = 10  # a deadline's seconds over this are between one interruption and the next


class DeadlineExceeded(TransientError):
    """A task took too long: a store that does not answer, more often than not."""


@contextlib.contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise DeadlineExceeded in the block after so many seconds; end the process after twice as many.

    It is raised again and again, and at the end of a block that swallowed it: whoever waits for hung threads on the way
    out, or takes any exception for a bad row, must not get away with it. The end of the process is for what does not
    come back to the interpreter: a C library that hangs, with or without the lock. Only the main thread can be
    interrupted, and Ray runs tasks there; elsewhere there is no deadline.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late = DeadlineExceeded(f"{what} took longer than {seconds:g} seconds.")
    expired = False

    def expire(number: int, frame: FrameType | None) -> None:
        nonlocal expired
        expired = True
        raise late

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds / AGAIN)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    if expired:
        raise late
