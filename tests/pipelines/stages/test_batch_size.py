"""The batch size of a worker that runs out of memory, once or again and again."""

from __future__ import annotations

from pipelines.stages.batch_size import FIRST_WAIT, LONGEST_WAIT, BatchSize


def run(batch_size: BatchSize, fits: int, batches: int) -> list[int]:
    """Generate full batches on a device that fits so many samples; return their sizes, failed ones as negative."""
    sizes = []
    for _ in range(batches):
        size = batch_size.current
        sizes.append(size if size <= fits else -size)
        (batch_size.succeeded if size <= fits else batch_size.failed)(size)
    return sizes


def test_a_larger_batch_is_tried_again_after_a_while() -> None:
    batch_size = BatchSize(8)
    assert run(batch_size, 2, 3) == [-8, -4, 2]
    assert run(batch_size, 8, 2 * FIRST_WAIT) == [2] * (FIRST_WAIT - 1) + [4] * FIRST_WAIT + [8]
    assert run(batch_size, 8, 10 * FIRST_WAIT) == [8] * 10 * FIRST_WAIT, "never more than the spec says"


def test_the_wait_doubles_with_each_further_failure_up_to_a_bound() -> None:
    batch_size = BatchSize(8)
    assert run(batch_size, 7, 1) == [-8]
    waits = []
    for _ in range(10):
        sizes = run(batch_size, 7, batch_size.wait + 1)
        waits.append(len(sizes) - 1)
        assert sizes == [4] * waits[-1] + [-8]
    assert waits == [min(LONGEST_WAIT, FIRST_WAIT * 2**number) for number in range(10)]


def test_failures_down_to_the_size_that_fits_count_as_one() -> None:
    batch_size = BatchSize(64)
    assert run(batch_size, 1, 7) == [-64, -32, -16, -8, -4, -2, 1]
    assert batch_size.wait == FIRST_WAIT


def test_a_batch_that_is_not_full_says_nothing_about_memory() -> None:
    batch_size = BatchSize(4)
    batch_size.failed(4)
    for _ in range(10 * FIRST_WAIT):
        batch_size.succeeded(1)
    assert batch_size.current == 2
    run(batch_size, 4, FIRST_WAIT)
    assert batch_size.current == 4
