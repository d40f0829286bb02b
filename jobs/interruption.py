"""Ctrl-C ends a command with exit code 130, also where a library turns the interruption into an error of its own."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT, as shells count


@contextlib.contextmanager
def noting_interruptions() -> Iterator[list[int]]:
    """Gives a list that has an entry once Ctrl-C was pressed: whatever ends the command then is the interruption.

    A KeyboardInterrupt is raised between any two instructions, inside extension modules' callbacks too, and comes out
    of some of them as an error of another kind.
    """
    pressed: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    # SIGINT is left alone where it is ignored, as in background jobs, or somebody else's.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
