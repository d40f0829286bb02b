"""The progress of a run, as a live line in a terminal or as log lines."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines.engine.usage import Usage
from pipelines.stages.finish import Receipt
from pipelines.store.safe_text import mask_secrets, printable

LOG_SECONDS = 30.0
logger = logging.getLogger("pipelines")


class Progress:
    """Counts the samples of a run, and shows them while it is entered as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()  # of shards, by kind of fault
        self.planned = self.shards = self.round = 0
        self.seconds_of: Counter[str] = Counter()  # of committed shards, by stage
        self.rows = self.bytes = 0  # of committed shards
        self.usage = Usage()  # of worker pools that have ended
        self.dtypes: set[str] = set()  # that the model computed in
        self.has_vanished = False  # whether a planned file was gone when it was read
        self.in_flight = 0.0  # samples that are generated and not committed
        self._started = self._logged = time.monotonic()
        self._live = Live(console=self.console, transient=True) if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def note(self, sentence: str) -> None:
        """Print a sentence above the live line, or log it."""
        if self._live:
            sentence = printable(mask_secrets(sentence))
            self.console.print(sentence, soft_wrap=True, markup=False, highlight=False, emoji=False)
        else:
            logger.info(sentence)

    def computed_in(self, dtype: str, requested: str) -> None:
        """Record the type that a worker computed in; note it once if it is not the spec's."""
        if dtype != requested and dtype not in self.dtypes:
            self.note(
                f"a worker computes in {dtype}: its CPU has no units for model.dtype {requested}. "
                "Pixels differ by rounding from those of a machine with such units."
            )
        self.dtypes.add(dtype)

    def begin_round(self, number: int, samples: int) -> None:
        """Start a round. Rounds above 0 replace rejected samples by samples with new seeds."""
        if number > self.round:
            samples_text = f"{samples} sample{'' if samples == 1 else 's'}"
            self.note(f"round {number}: {samples_text} with new seeds, in place of rejected ones.")
        self.round = number

    def plan(self, samples: int) -> None:
        """Add to the number of planned samples; the clock starts with the first ones."""
        if not self.planned:
            self._started = self._logged = time.monotonic()
        self.planned += samples

    def committed(self, receipt: Receipt, rows: int = 0, seconds: Mapping[str, float] | None = None) -> None:
        """Count a committed shard of `rows` rows; `seconds` by stage, if they are known."""
        self.shards += 1
        self.rows += rows
        self.bytes += receipt.bytes
        self.seconds_of.update(seconds or {})
        self.counts.update(receipt.counts)
        self.reasons.update(receipt.reasons)
        self.has_vanished |= receipt.has_vanished

    def retried(self, kind: str) -> None:
        """Count the retry of a shard, or of a step of it, after a fault of this kind."""
        self.retries[kind] += 1

    def show(self, in_flight: float) -> None:
        """Refresh the line; `in_flight` samples are generated and not committed."""
        self.in_flight = in_flight
        now = time.monotonic()
        if self._live:
            self._live.update(Text(self.line()))
        elif now - self._logged >= LOG_SECONDS:
            self._logged = now
            logger.info(self.line())

    @property
    def seconds(self) -> float:
        """Seconds since the first samples were planned."""
        return time.monotonic() - self._started

    def line(self) -> str:
        """The state in one line: samples, outcomes, rate, time left, and retries by kind if there were any."""
        done = self.counts.total()
        rate = (done + self.in_flight) / max(1e-3, self.seconds)
        left = (self.planned - done - self.in_flight) / rate if rate > 0 else 0.0
        outcomes = ", ".join(f"{self.counts[name]} {name}" for name in ("kept", "rejected", "quarantined"))
        time_left = f"{_duration(left)} left" if rate > 0 else "starting"
        begin = f"round {self.round}: " if self.round else ""
        line = f"{begin}{done} of {self.planned} samples, {outcomes}, {rate:.2f} samples/s, {time_left}"
        retries = ", ".join(f"{count} {kind}" for kind, count in sorted(self.retries.items()))
        return f"{line}, retries: {retries}" if retries else line


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
