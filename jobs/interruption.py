"""Exit code 130 after Ctrl-C, also if a library turns the interruption into its own error."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT, as shells count


@contextlib.contextmanager
def noting_interruptions() -> Iterator[list[int]]:
    """Yield a list that gets an entry when Ctrl-C is pressed; the caller then treats any error as the interruption.

    A KeyboardInterrupt can be raised between any two instructions, also in callbacks of extension modules, and some of
    them turn it into another error.
    """
    pressed: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    # Leave SIGINT alone if it is ignored, as in background jobs, or has another handler.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
