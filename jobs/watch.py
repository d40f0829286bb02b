"""`jointdit status --watch`: read a job's ledger until the job is complete, without Ray."""

from __future__ import annotations

import sys
import time

from rich.live import Live
from rich.text import Text

from jobs.report import console, say, status_lines
from pipelines.dataset.status import Status, StatusReader
from pipelines.store.errors import TransientError
from pipelines.store.safe_text import printable

REFRESH_SECONDS = 2.0


def watch(uri: str, refresh_seconds: float = REFRESH_SECONDS) -> None:
    """Redraw the state of a job until it is complete; without a terminal, print a line when it changes.

    Raises StoreError if there is no job. It waits for a store that does not answer for a while.
    """
    reader = StatusReader(uri)
    if not console.is_terminal:
        _print_changes(reader, refresh_seconds)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = _read(reader)
            if status is not None:
                lines = [*status_lines(status), pace(status, reader.rate())]
                live.update(Text("\n".join(map(printable, lines))), refresh=True)
                if status.is_complete:
                    return
            time.sleep(refresh_seconds)


def _print_changes(reader: StatusReader, refresh_seconds: float) -> None:
    before = ""
    while True:
        status = _read(reader)
        if status is not None:
            counts = ", ".join(f"{number} {outcome}" for outcome, number in status.counts.items())
            line = f"{status.committed_samples} of {status.samples} samples, {counts}"
            if line != before or status.is_complete:
                say(f"{line}; {pace(status, reader.rate())}")
                sys.stdout.flush()
                before = line
            if status.is_complete:
                return
        time.sleep(refresh_seconds)


def _read(reader: StatusReader) -> Status | None:
    try:
        return reader.read()
    except TransientError as error:
        print(printable(str(error)), file=sys.stderr)
        return None


def pace(status: Status, rate: float | None) -> str:
    """Return rate, time left, and whether a run is active."""
    if status.is_complete:
        assert status.latest is not None
        return f"complete: version {status.latest.number}"
    speed = "measuring the rate" if rate is None else f"{rate:.2f} samples/s"
    left = status.samples - status.committed_samples
    if rate and left:
        speed += f", {duration(left / rate)} left"
    states = [state for _, state in status.leases]
    if "live" in states:
        active = f"{states.count('live')} active driver{'s' if states.count('live') > 1 else ''}"
    elif "unknown" in states:
        active = "a driver was active: checking whether it still is"
    else:
        active = "no active driver: `jointdit run` resumes the job"
    return f"{speed}; {active}"


def duration(seconds: float) -> str:
    """Format a duration: 1 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
