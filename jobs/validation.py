"""`jointdit validate`: progress, an interruption that keeps what is done, and the choice of threads or a cluster."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs.report import readable, several
from jobs.watch import duration

if TYPE_CHECKING:
    from pipelines.dataset.validation.objects import MapBatches, Progressed
    from pipelines.dataset.validation.validate import Validation

LOG_SECONDS = 30.0


class ProgressLine:
    """Shows on stderr how far a check has come: a live line in a terminal, else a line from time to time."""

    def __init__(self, console: Console | None = None, seconds: float = LOG_SECONDS) -> None:
        self.console, self.seconds = console or Console(stderr=True, highlight=False), seconds
        self.state: Progressed | None = None
        self._live = Live(console=self.console, transient=True) if self.console.is_terminal else None
        self._started = self._printed = time.monotonic()
        self._taken_bytes = 0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
            self._live.update(Text(self.line()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, state: Progressed) -> None:
        """Take the state of the check, and show it if it is time."""
        at = time.monotonic()
        if self.state is None or state.objects == state.taken:  # nothing is read yet
            self._started, self._taken_bytes = at, state.bytes
        self.state = state
        if self._live:
            self._live.update(Text(self.line()))
        elif at - self._printed >= self.seconds:
            self._printed = at
            self.console.print(self.line(), soft_wrap=True, markup=False, emoji=False)

    def line(self) -> str:
        """Return the state in one line: files and bytes, rate, time left."""
        state = self.state
        if state is None:
            return "counting samples"
        seconds = max(1e-3, time.monotonic() - self._started)
        rate = (state.bytes - self._taken_bytes) / seconds
        left = f", {duration((state.of_bytes - state.bytes) / rate)} left" if rate > 0 else ""
        files = f"{state.objects:,} of {several(state.of_objects, 'file')}"
        return f"{files}, {readable(state.bytes)} of {readable(state.of_bytes)}, {readable(rate)}/s{left}"


def validate(uri: str, quick: bool, is_on_ray: bool, is_resumed: bool, line: ProgressLine | None = None) -> Validation:
    """Validate a dataset, with its progress on stderr. What passed stays known if it is interrupted."""
    from pipelines.dataset.validation.objects import Checking
    from pipelines.dataset.validation.passed import Passed
    from pipelines.dataset.validation.validate import validate as recount
    from pipelines.store.storage import Storage

    if quick:
        return recount(uri, quick=True)
    line = line or ProgressLine()
    try:
        with Passed(Storage(uri).uri, is_resumed) as passed, _mapping(is_on_ray) as map_batches, line:
            found = recount(uri, how=Checking(map_batches, passed, line.show))
    except KeyboardInterrupt:
        print(interrupted(uri, line.state), file=sys.stderr)
        raise
    if line.state is not None and line.state.taken:
        taken = several(line.state.taken, "file")
        found.notes.append(f"{taken} passed in the check that began at {passed.since} and were not read again.")
    return found


@contextlib.contextmanager
def _mapping(is_on_ray: bool) -> Iterator[MapBatches]:
    from pipelines.dataset.validation.objects import by_threads

    if not is_on_ray:
        yield by_threads
        return
    from pipelines.run.checks_on_ray import on_ray

    with on_ray() as map_batches:
        yield map_batches


def interrupted(uri: str, state: Progressed | None) -> str:
    """Return the sentence that ends a check that is interrupted."""
    if state is None or not state.objects:
        return "Interrupted: no file was checked yet."
    done = f"{state.objects:,} of {several(state.of_objects, 'file')} are checked"
    return f"Interrupted: {done}; `jointdit validate {uri} --resume` goes on from there."
