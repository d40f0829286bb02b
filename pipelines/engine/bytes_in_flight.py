"""The bytes that shards in flight hold in Ray's object store, and the budget for them.

A shard holds its source rows and its parts from read to finish, and the results of the model until finish. Before any
shard has been read, its size is the most that the read task keeps (stages/read.py). After that it is the largest number
of bytes per sample among the last REMEMBERED ones.

The budget never stops a run: a shard is always started while no other one is in flight (flow.py).
"""

from __future__ import annotations

import logging
import math
from collections import deque

from pipelines.ledger.entries import PlannedShard
from pipelines.stages.context import RunContext
from pipelines.stages.read import HELD_BYTES

STORE_SHARE = 0.6  # of the object stores of all nodes; shards are not spread evenly over nodes
UNKNOWN_STORE = 16e9  # bytes, where Ray does not tell the size of its object stores
REMEMBERED = 64  # shards that were read; parts that were generated
INPUT_BYTES, OUTPUT_BYTES = 7, 7  # per pixel at the model's size: uint8 rgb and float32 disparity, in and out
logger = logging.getLogger(__name__)


class BytesInFlight:
    """Counts the bytes of shards in flight, known or estimated."""

    def __init__(self, context: RunContext, store_bytes: float) -> None:
        """`store_bytes`: of the object stores of all nodes; 0 if they are unknown."""
        spec, pixels = context.spec, context.height * context.width
        self.held = 0
        self._given = spec.resources.in_flight_gb
        self._source_bytes = 0 if spec.reading == "joint" else HELD_BYTES  # of a shard, before one was read
        self._pixels = pixels
        self._read: deque[float] = deque(maxlen=REMEMBERED)  # bytes per sample
        self._generated: deque[float] = deque(maxlen=REMEMBERED)
        self._most_read = 0.0  # of those that are remembered
        self._most_generated = float(OUTPUT_BYTES * pixels)
        self._has_warned = False
        self.follow(store_bytes)

    def follow(self, store_bytes: float) -> None:
        """Set the budget from the present size of the object stores, unless the spec sets it."""
        self.budget = STORE_SHARE * (store_bytes or UNKNOWN_STORE) if self._given == "auto" else self._given * 1e9

    def estimate(self, entry: PlannedShard) -> int:
        """Return the bytes that a shard will hold."""
        samples = entry.samples
        if self._read:
            return math.ceil((self._most_read + self._most_generated) * samples)
        return math.ceil(self._source_bytes + (INPUT_BYTES * self._pixels + self._most_generated) * samples)

    def has_room(self, entry: PlannedShard, chosen: int = 0) -> bool:
        """Return whether the budget has room for a shard, beside `chosen` bytes of shards that are about to start."""
        return self.held + chosen + self.estimate(entry) <= self.budget

    def take(self, entry: PlannedShard) -> int:
        """Count a shard that is started; return its bytes, to be given back when it ends."""
        taken = self.estimate(entry)
        self.held += taken
        return taken

    def give_back(self, taken: int) -> None:
        """Count a shard that has ended."""
        self.held -= taken

    def note_read(self, entry: PlannedShard, taken: int, read: int) -> int:
        """Note the bytes that a shard's read returned; return the bytes that it holds in place of `taken`."""
        self._read.append(read / max(1, entry.samples))
        self._most_read = max(self._read)
        known = math.ceil(read + self._most_generated * entry.samples)
        self.held += known - taken
        return known

    def note_generated(self, samples: int, generated: int) -> None:
        """Note the bytes of the results of a part."""
        if samples:
            self._generated.append(generated / samples)
            self._most_generated = max(self._generated)

    def warn(self, entry: PlannedShard) -> None:
        """Say once that the budget keeps a worker idle."""
        if not self._has_warned and self._read:
            self._has_warned = True
            logger.warning(
                "resources.in_flight_gb: %.3g GB hold %d shards of about %.2g GB, so workers wait for input: "
                "reduce output.shard_rows, or give Ray's object store more memory",
                self.budget / 1e9,
                max(1, self.budget // max(1, self.estimate(entry))),
                self.estimate(entry) / 1e9,
            )
