from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.engine.deadline import DeadlineExceeded, deadline
from pipelines.store.errors import TransientError


def test_a_block_that_takes_too_long_is_interrupted() -> None:
    started = time.monotonic()
    with pytest.raises(TransientError, match=r"^reading took longer than 0.05 seconds\.$"), deadline(0.05, "reading"):
        threading.Event().wait(30)
    assert time.monotonic() - started < 10


def test_a_block_that_swallows_the_exception_is_interrupted_again() -> None:
    with pytest.raises(DeadlineExceeded), deadline(0.05, "reading"), contextlib.suppress(DeadlineExceeded):
        threading.Event().wait(30)


def wait_for_a_hung_thread(release: threading.Event) -> None:
    with ThreadPoolExecutor(1) as pool:  # its end waits for the thread, whatever was raised inside
        try:
            pool.submit(release.wait, 30).result()
        except DeadlineExceeded:
            threading.Timer(1.0, release.set).start()  # so that the test ends if it is never interrupted again
            raise


def test_a_wait_for_hung_threads_at_the_end_of_a_block_is_interrupted() -> None:
    release = threading.Event()
    with pytest.raises(DeadlineExceeded), deadline(1.5, "reading"):
        wait_for_a_hung_thread(release)
    assert not release.is_set()
    release.wait(30)


def test_the_timer_and_the_handler_are_restored() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with deadline(30, "reading"):
        assert signal.getsignal(signal.SIGALRM) is not before
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


STUBBORN = """
import signal
from pipelines.engine.deadline import deadline
with deadline(0.2, "reading"):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # like a library that never returns to the interpreter
    while True:
        pass
"""


def test_a_block_that_cannot_be_interrupted_ends_with_its_process() -> None:
    done = subprocess.run([sys.executable, "-c", STUBBORN], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_other_threads_have_no_deadline() -> None:
    finished = []

    def work() -> None:
        with deadline(0.0001, "reading"):
            finished.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert finished == [True]
