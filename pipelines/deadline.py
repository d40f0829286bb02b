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

from jointdit.errors import TransientError


@contextlib.contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise TransientError in the block after so many seconds; end the process after twice as many.

    The second is for what does not come back to the interpreter: a C library that hangs, with or without the lock.
    Only the main thread can be interrupted, and Ray runs tasks there; elsewhere there is no deadline.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise TransientError(f"{what} took longer than {seconds:g} seconds.")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
