"""Select the pairs of each step as a function of seed, step and source.

An epoch contains each pair once. Blocks of the source are shuffled, and pairs are shuffled within windows of blocks, so
that a table is read row group by row group. All pairs of a step are of one bucket. The last step of a bucket in an
epoch, if incomplete, is filled with pairs from the bucket's beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.training.pairs import Bucket, PairSource

WINDOW_PAIRS = 512  # approximate number of pairs that are shuffled together


class StepPairs(NamedTuple):
    """The pairs of one step: their bucket and their numbers in the source."""

    bucket: Bucket
    numbers: NDArray[np.int64]


class BatchPlan:
    """The pairs of all steps."""

    def __init__(self, source: PairSource, buckets: Sequence[Bucket], pairs_a_step: int, seed: int) -> None:
        self.blocks = np.asarray(source.blocks(), dtype=np.int64)
        self.count = int(self.blocks.sum())
        if self.count == 0:
            raise InputError("data has no pair: give at least one.")
        self.buckets = list(buckets)
        self.pairs_a_step, self.seed = pairs_a_step, seed
        sizes = source.sizes() if len(self.buckets) > 1 else None
        if sizes is not None:
            self.bucket_of = np.array([nearest_bucket(size, self.buckets) for size in sizes], dtype=np.int64)
        else:  # pairs of any size are assigned to the buckets in turn
            self.bucket_of = np.arange(self.count, dtype=np.int64) % len(self.buckets)
        lengths = np.bincount(self.bucket_of, minlength=len(self.buckets))
        self.steps_an_epoch = int(sum(-(-length // pairs_a_step) for length in lengths))
        self._epoch: tuple[int, list[StepPairs]] | None = None

    def pairs_of(self, step: int) -> StepPairs:
        """Return the pairs of a step, counted from 0."""
        epoch, position = divmod(step, self.steps_an_epoch)
        known = self._epoch
        if known is None or known[0] != epoch:
            self._epoch = known = (epoch, self._steps_of(epoch))
        return known[1][position]

    def _steps_of(self, epoch: int) -> list[StepPairs]:
        random = np.random.default_rng(random_seed(self.seed, "epoch", epoch))
        order = self._order(random)
        rest: list[StepPairs] = []
        of_order = self.bucket_of[order]
        places: list[tuple[int, StepPairs]] = []
        for number, bucket in enumerate(self.buckets):
            where = np.flatnonzero(of_order == number)
            mine = order[where]
            whole = len(mine) // self.pairs_a_step * self.pairs_a_step
            for start in range(0, whole, self.pairs_a_step):
                stop = start + self.pairs_a_step
                places.append((int(where[stop - 1]), StepPairs(bucket, mine[start:stop])))
            if whole < len(mine):
                filled = np.resize(np.concatenate([mine[whole:], mine[:whole]]), self.pairs_a_step)
                rest.append(StepPairs(bucket, filled))
        steps = [pairs for _, pairs in sorted(places, key=lambda place: place[0])] + rest
        assert len(steps) == self.steps_an_epoch
        return steps

    def _order(self, random: np.random.Generator) -> NDArray[np.int64]:
        first = np.concatenate([[0], np.cumsum(self.blocks)[:-1]])
        shuffled = random.permutation(len(self.blocks))
        window_of = np.cumsum(self.blocks[shuffled]) // WINDOW_PAIRS
        parts = []
        for window in np.split(shuffled, np.flatnonzero(np.diff(window_of)) + 1):
            numbers = np.concatenate([np.arange(first[b], first[b] + self.blocks[b]) for b in window])
            parts.append(random.permutation(numbers))
        return np.concatenate(parts)


def nearest_bucket(size: Bucket, buckets: Sequence[Bucket]) -> int:
    """Return the index of the bucket with the nearest log aspect, of equal ones the nearest in area."""
    height, width = size

    def distance(bucket: Bucket) -> tuple[float, float]:
        aspect = abs(np.log(bucket[1] / bucket[0]) - np.log(width / height))
        return round(float(aspect), 6), float(abs(np.log(bucket[0] * bucket[1]) - np.log(height * width)))

    return min(range(len(buckets)), key=lambda index: distance(buckets[index]))


def random_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends only on the parts."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
