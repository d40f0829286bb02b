"""The search for near-duplicates, compared with one that compares all samples with each other."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipelines.dataset import near_duplicates as module
from pipelines.dataset.near_duplicates import Band, bands, near_duplicates
from pipelines.store.joins import joins

Sample = tuple[int, int, int, bool]  # order, hash, row, is_held


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with joins() as connection:
        yield connection


def table(samples: list[Sample]) -> pa.Table:
    types = {"order": pa.int64(), "hash": pa.uint64(), "row": pa.int64(), "is_held": pa.bool_()}
    columns = list(zip(*samples, strict=True)) or [[]] * len(types)
    return pa.table(
        {name: pa.array(values, type_) for (name, type_), values in zip(types.items(), columns, strict=True)}
    )


def search(connection: duckdb.DuckDBPyConnection, samples: pa.Table, *arguments, **options) -> list[tuple]:
    connection.register("candidates", samples)
    return near_duplicates(connection, "candidates", *arguments, **options).order('"order"').fetchall()


def naive(samples: list[Sample], max_distance: int, same_row_is_no_duplicate: bool) -> list[tuple[int, int, int]]:
    kept = sorted(sample for sample in samples if sample[3])
    rejected = []
    for sample in sorted(sample for sample in samples if not sample[3]):
        order, value, row, _ = sample
        others = [other for other in kept if not (same_row_is_no_duplicate and other[2] == row)]
        distances = [(value ^ other[1]).bit_count() for other in others]
        least = min(distances, default=max_distance + 1)
        if least <= max_distance:
            rejected.append((order, least, others[distances.index(least)][0]))
        else:
            kept.append(sample)
    return rejected


def clustered(seed: int, count: int) -> list[Sample]:
    """Samples in clusters of very different density; each row has samples in one or two clusters."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 1 << 64, int(random.integers(1, 12)), np.uint64)
    flips = random.choice([0.0, 0.01, 0.03, 0.08, 0.2], len(centres))
    rows = int(random.integers(1, count))
    home = random.integers(0, len(centres), (rows, 2))
    held = random.choice([0.0, 0.1, 0.5, 1.0])
    samples = []
    for order in range(count):
        row = int(random.integers(rows))
        cluster = home[row][int(random.random() < 0.2)]
        mask = sum(1 << bit for bit in np.flatnonzero(random.random(64) < flips[cluster]).tolist())
        samples.append((order, int(centres[cluster]) ^ mask, row, bool(random.random() < held)))
    return samples


@pytest.mark.parametrize("most_pairs", [module.MOST_PAIRS, 10])
@pytest.mark.parametrize("max_distance", range(11))
@pytest.mark.parametrize("same_row_is_no_duplicate", [False, True])
def test_it_finds_what_comparing_all_samples_finds(
    connection, monkeypatch: pytest.MonkeyPatch, max_distance: int, same_row_is_no_duplicate: bool, most_pairs: int
) -> None:
    monkeypatch.setattr(module, "MOST_PAIRS", most_pairs)
    for seed in range(3):
        samples = clustered(100 * max_distance + seed, 150)
        expected = naive(samples, max_distance, same_row_is_no_duplicate)
        found = search(connection, table(samples), max_distance, same_row_is_no_duplicate=same_row_is_no_duplicate)
        assert found == expected, seed


@pytest.mark.parametrize("same_row_is_no_duplicate", [False, True])
def test_a_hash_that_many_samples_share_makes_few_pairs(connection, same_row_is_no_duplicate: bool) -> None:
    count = 200_000
    order = np.arange(count)
    hashes = np.where(order % 2, 7, 8).astype(np.uint64)
    samples = pa.table({"order": order, "hash": hashes, "row": order, "is_held": np.zeros(count, bool)})
    found = search(connection, samples, 4, same_row_is_no_duplicate=same_row_is_no_duplicate)
    assert found == [(number, 4 * (number % 2), 0) for number in range(1, count)]
    assert connection.execute("select count(*) from near_pairs").fetchall() == [(1,)]


def test_samples_without_a_hash_are_not_compared(connection) -> None:
    hashes = pa.array([None, 5, None, 5], pa.uint64())
    samples = pa.table(
        {"order": range(4), "hash": hashes, "row": ["a", "b", "c", "d"], "is_held": [True] + [False] * 3}
    )
    assert search(connection, samples, 0, same_row_is_no_duplicate=True) == [(3, 0, 1)]


def test_nothing_new_is_nothing_rejected(connection) -> None:
    assert search(connection, table([]), 4, same_row_is_no_duplicate=False) == []
    held = table([(order, 5, order, True) for order in range(3)])
    assert search(connection, held, 4, same_row_is_no_duplicate=True) == []


@pytest.mark.parametrize(("max_distance", "blocks"), [(0, 1), (1, 1), (3, 3), (3, 5), (4, 6), (10, 12)])
def test_each_pair_belongs_to_one_band(max_distance: int, blocks: int) -> None:
    random = np.random.default_rng(blocks)

    def holds(band: Band, difference: int) -> bool:
        return not difference & band.mask and all(difference & mask for mask in band.earlier)

    every = list(bands(max_distance, blocks))
    for _ in range(300):
        flipped = random.choice(64, int(random.integers(max_distance + 1)), replace=False).tolist()
        difference = sum(1 << bit for bit in flipped)
        assert sum(holds(band, difference) for band in every) == 1
