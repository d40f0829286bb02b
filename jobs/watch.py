"""`jointdit status --watch`: the ledger of a job, read again and again until it is complete. It starts no Ray."""

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
    """Redraw the state of a job until it is complete; without a terminal, a line whenever it changed.

    Raises StoreError where there is no job. A store that does not answer for a while is waited for.
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
    """Rate, time left, and whether anybody is at work."""
    if status.is_complete:
        assert status.latest is not None
        return f"complete: version {status.latest.number}"
    speed = "measuring the rate" if rate is None else f"{rate:.2f} samples/s"
    left = status.samples - status.committed_samples
    if rate and left:
        speed += f", {duration(left / rate)} left"
    states = [state for _, state in status.leases]
    if "live" in states:
        at_work = f"{states.count('live')} driver{'s' if states.count('live') > 1 else ''} at work"
    elif "unknown" in states:
        at_work = "a driver was at work: watching whether it still is"
    else:
        at_work = "no driver is at work: `jointdit run` goes on"
    return f"{speed}; {at_work}"


def duration(seconds: float) -> str:
    """Time as people read it: 1 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
