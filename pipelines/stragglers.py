"""Which shards take far longer than the others of their run: a slow disk, a throttled GPU, a neighbour that eats it."""

from __future__ import annotations

import statistics
import time
from collections import deque

from pipelines.attempts import Attempt
from pipelines.spec import ResourcesSpec

FEWEST_SHARDS = 3  # before their median means something
REMEMBERED_SHARDS = 1000


class Pace:
    """Seconds a sample of the shards that were committed; the clock of a shard runs while it is its worker's first."""

    def __init__(self, resources: ResourcesSpec) -> None:
        self.factor, self.least_seconds = resources.straggler_factor, resources.straggler_seconds
        self._seconds_a_sample: deque[float] = deque(maxlen=REMEMBERED_SHARDS)

    def committed(self, attempt: Attempt) -> None:
        """Learn from a shard that is done."""
        if attempt.began is not None:
            self._seconds_a_sample.append((time.monotonic() - attempt.began) / attempt.entry.samples)

    def is_late(self, attempt: Attempt) -> bool:
        """Whether a shard is far beyond the median."""
        if self.factor is None or attempt.began is None or len(self._seconds_a_sample) < FEWEST_SHARDS:
            return False
        usual = statistics.median(self._seconds_a_sample) * attempt.entry.samples
        return time.monotonic() - attempt.began > max(self.least_seconds, self.factor * usual)
