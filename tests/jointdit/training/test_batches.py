"""Which pairs a step sees."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdit.errors import InputError
from jointdit.training.batches import BatchPlan, nearest_bucket
from jointdit.training.pairs import Bucket, Pair, ScenePairs, fit_to_bucket

BUCKETS = [(32, 32), (32, 64), (64, 32)]


class Sized:
    """A source of pairs in blocks, each with its size; it is never read."""

    def __init__(self, blocks: list[int], sizes: list[Bucket]) -> None:
        self._blocks, self._sizes = blocks, sizes

    def blocks(self) -> list[int]:
        return self._blocks

    def sizes(self) -> list[Bucket]:
        return self._sizes

    def read(self, numbers: object, bucket: object) -> list[Pair]:
        raise AssertionError("a plan reads nothing")


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.integers(1, 7),
    st.integers(0, 3),
    st.integers(0, 2**32),
)
def test_an_epoch_sees_each_pair_and_each_step_one_bucket(
    blocks: list[int], pairs_a_step: int, epoch: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    sizes = [BUCKETS[index] for index in random.integers(0, 3, sum(blocks))]
    plan = BatchPlan(Sized(blocks, sizes), BUCKETS, pairs_a_step, seed)
    first = epoch * plan.steps_an_epoch
    steps = [plan.pairs_of(step) for step in range(first, first + plan.steps_an_epoch)]
    seen = Counter(int(number) for step in steps for number in step.numbers)
    assert set(seen) == set(range(sum(blocks)))
    for step in steps:
        assert len(step.numbers) == pairs_a_step
        assert {sizes[number] for number in step.numbers} == {step.bucket}
    # Only what fills up the last step of a bucket comes again.
    assert sum(seen.values()) - len(seen) < pairs_a_step * len(BUCKETS)


def test_steps_depend_on_seed_and_number_alone() -> None:
    def plan(seed: int) -> BatchPlan:
        return BatchPlan(ScenePairs(50), [(32, 32)], 8, seed)

    whole = [plan(1).pairs_of(step).numbers.tolist() for step in range(20)]
    jumping = plan(1)
    assert [jumping.pairs_of(step).numbers.tolist() for step in (19, 3, 11)] == [whole[19], whole[3], whole[11]]
    assert [plan(2).pairs_of(step).numbers.tolist() for step in range(20)] != whole
    assert whole[0] != whole[7]  # another epoch, another order


def test_no_pairs_are_an_error() -> None:
    with pytest.raises(InputError, match="no pair"):
        BatchPlan(Sized([], []), [(32, 32)], 4, 0)


def test_the_nearest_bucket_is_the_one_of_the_nearest_aspect() -> None:
    buckets = [(512, 512), (384, 640), (640, 384), (256, 256)]
    assert nearest_bucket((1080, 1920), buckets) == 1
    assert nearest_bucket((1920, 1080), buckets) == 2
    assert nearest_bucket((700, 700), buckets) == 0
    assert nearest_bucket((200, 210), buckets) == 3


def test_a_pair_is_cut_and_its_disparity_spread_again() -> None:
    disparity = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (32, 1))
    rgb = np.repeat((disparity[..., None] * 255).astype(np.uint8), 3, axis=2)
    fitted = fit_to_bucket(Pair(rgb, disparity, "a ramp"), (32, 32))
    assert fitted.rgb.shape == (32, 32, 3)
    assert (fitted.disparity.min(), fitted.disparity.max()) == (0, 1)
    assert abs(int(fitted.rgb[0, 0, 0]) - 85) < 3  # the middle third
    step = np.zeros((32, 96), np.float32)
    step[:, :8] = 1
    with pytest.raises(ValueError, match="constant in the window"):
        fit_to_bucket(Pair(rgb, step, "a step outside the window"), (32, 32))
