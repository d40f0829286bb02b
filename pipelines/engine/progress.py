"""How far a run is: a live line in a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
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
    """Counts samples of this run; a context manager that shows them."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()  # of shards, by the kind of fault
        self.planned = self.shards = self.round = 0
        self.seconds_of: Counter[str] = Counter()  # committed shards, by stage
        self.rows = self.bytes = 0  # read for them, written for them
        self.usage = Usage()  # of pools of workers that have ended
        self.dtypes: set[str] = set()  # that the model computed in
        self.in_flight = 0.0  # samples generated but not committed yet, from whole parts
        self._started = self._logged = time.monotonic()
        self._live = (
            Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def note(self, sentence: str) -> None:
        """A sentence that stays."""
        if self._live:
            sentence = printable(mask_secrets(sentence))
            self.console.print(sentence, soft_wrap=True, markup=False, highlight=False, emoji=False)
        else:
            logger.info(sentence)

    def computed_in(self, dtype: str, wanted: str) -> None:
        """Note the type that a worker computed in; the first time it is not the spec's, say so."""
        if dtype != wanted and dtype not in self.dtypes:
            self.note(
                f"a worker computes in {dtype}: its CPU has no units for model.dtype {wanted}. "
                "Pixels differ by rounding from those of a machine with such units."
            )
        self.dtypes.add(dtype)

    def begin_round(self, number: int, samples: int) -> None:
        """Shards of a round come next; above 0 they are new seeds for what was rejected."""
        if number > self.round:
            what = f"{samples} sample{'' if samples == 1 else 's'}"
            self.note(f"round {number}: {what} with new seeds, in place of rejected ones.")
        self.round = number

    def plan(self, samples: int) -> None:
        """So many more samples are to come; the clock starts with the first."""
        if not self.planned:
            self._started = self._logged = time.monotonic()
        self.planned += samples

    def committed(self, receipt: Receipt, rows: int = 0, seconds: Mapping[str, float] | None = None) -> None:
        """A shard of so many rows is safe; `seconds` by stage, where they are known."""
        self.shards += 1
        self.rows += rows
        self.bytes += receipt.bytes
        self.seconds_of.update(seconds or {})
        self.counts.update(receipt.counts)
        self.reasons.update(receipt.reasons)

    def retried(self, kind: str) -> None:
        """A shard, or a step of it, goes again after a fault of this kind."""
        self.retries[kind] += 1

    def show(self, in_flight: float) -> None:
        """Refresh; `in_flight` samples are generated and not committed."""
        self.in_flight = in_flight
        now = time.monotonic()
        if self._live:
            self._live.update(Text(self.line()))
        elif now - self._logged >= LOG_SECONDS:
            self._logged = now
            logger.info(self.line())

    @property
    def seconds(self) -> float:
        """Since the first samples were planned."""
        return time.monotonic() - self._started

    def line(self) -> str:
        """The state in one line: samples, outcomes, rate, time left, retries by kind where there were any."""
        done = self.counts.total()
        elapsed = max(1e-3, time.monotonic() - self._started)
        rate = (done + self.in_flight) / elapsed
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
