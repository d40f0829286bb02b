"""The dispatcher on a simulated cluster with the real ledger."""

from __future__ import annotations

import gc
import random
from collections import Counter
from pathlib import Path

import pytest

from jobs.tools.bench.dispatch import dispatcher_on, planned_ids, write_plan
from jobs.tools.bench.simulated import CountingStorage, SimulatedCluster, World
from pipelines.engine.attempts import Attempt
from pipelines.ledger.entries import Commit, new_token
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.resume import read_remaining

SHARDS, WORKERS = 300, 50
STORM = World(WORKERS, changes=[(100.0, -5), (160.0, 5), (300.0, -2), (420.0, 8)], rivals=0.1)


def output(folder: Path, committed: int, shards: int = SHARDS) -> CountingStorage:
    """A job with a plan; the commits of its first shards are in listings only."""
    plain = CountingStorage(str(folder / "out"))
    write_plan(plain, committed, shards)
    return CountingStorage(plain.uri, lambda: planned_ids(plain, committed))


def dispatched(folder: Path, committed: int, world: World = STORM) -> tuple[SimulatedCluster, Counter[tuple[str, str]]]:
    """Run a job to its end; return the cluster and the driver's requests after its first wait."""
    random.seed(0)  # backoffs have jitter
    storage = output(folder, committed)
    ledger = Ledger(storage)
    remaining = read_remaining(ledger)
    assert (len(remaining.pending), remaining.committed) == (SHARDS, committed)
    cluster = SimulatedCluster(storage, world)
    dispatcher = dispatcher_on(cluster, ledger, folder)
    dispatcher.run(remaining.pending)
    assert dispatcher.take_committed() == {entry.shard.id for entry in remaining.pending}
    return cluster, storage.requests - cluster.began[1]


def test_requests_per_shard_do_not_depend_on_what_is_committed(tmp_path: Path) -> None:
    """The driver listed all commits when a worker started, and when another driver had committed a shard."""
    few, requests = dispatched(tmp_path / "few", 0)
    many, requests_over_many = dispatched(tmp_path / "many", 20_000)
    assert few.lost == many.lost == 7
    assert requests == requests_over_many
    assert requests["list", "_commits"] == 0
    assert SHARDS <= requests["look", "_commits"] <= 1.2 * SHARDS, "one for each attempt"
    assert requests.keys() == {("look", "_commits")}


def test_a_shard_that_another_driver_commits_is_looked_for_and_not_made_again(tmp_path: Path) -> None:
    storage = output(tmp_path, 0, 40)
    ledger = Ledger(storage)
    pending = read_remaining(ledger).pending
    cluster = SimulatedCluster(storage, World(2))
    dispatcher = dispatcher_on(cluster, ledger, tmp_path)
    others = Ledger(CountingStorage(storage.uri))
    for entry in pending[10:30]:
        others.commit(Commit(entry.shard.id, new_token(), (), ()))
    dispatcher.run(pending)
    assert dispatcher.take_committed() == {entry.shard.id for entry in pending}
    assert storage.task_requests["create", "_commits"] == 20
    assert dispatcher.flow.progress.planned == dispatcher.flow.progress.counts.total() // 8 * 256 == 20 * 256


def test_the_same_world_takes_the_same_time(tmp_path: Path) -> None:
    first, _ = dispatched(tmp_path / "first", 0)
    second, _ = dispatched(tmp_path / "second", 0)
    assert first.now() == second.now()
    assert first.waits == second.waits


@pytest.mark.parametrize(("gigabytes", "most"), [(2.7, 10), (0.001, 1)])
def test_bytes_in_flight_stay_within_their_budget(tmp_path: Path, gigabytes: float, most: int) -> None:
    """256 rows of 1 MB and their results hold 0.27 GB; a budget below that still lets one shard through."""
    storage = output(tmp_path, 0, 60)
    ledger = Ledger(storage)
    cluster = SimulatedCluster(storage, World(20))
    dispatcher = dispatcher_on(cluster, ledger, tmp_path, resources={"in_flight_gb": gigabytes})
    pending = read_remaining(ledger).pending
    dispatcher.run(pending)
    assert len(dispatcher.take_committed()) == 60
    assert cluster.most_in_flight <= most
    assert dispatcher.flow.bytes.held == 0


def test_the_bytes_of_a_shard_are_those_of_the_shards_before_it(tmp_path: Path) -> None:
    storage = output(tmp_path, 0, 2)
    flow = dispatcher_on(SimulatedCluster(storage, World(1)), Ledger(storage), tmp_path).flow
    first, second = Ledger(storage).planned()
    pixels, sizes = 512 * 512 * 256, flow.bytes
    assert sizes.estimate(first) == 14 * pixels, "uint8 rgb and float32 disparity, in and out"
    taken = sizes.take(first)
    assert sizes.note_read(first, taken, read=10**9) == 10**9 + 7 * pixels == sizes.held
    sizes.note_generated(samples=8, generated=8 * 10**6)
    assert sizes.estimate(second) == 10**9 + 256 * 10**6
    sizes.give_back(10**9 + 7 * pixels)
    assert sizes.held == 0


def test_the_budget_follows_ray_unless_the_spec_sets_it(tmp_path: Path) -> None:
    storage = output(tmp_path, 0, 1)
    cluster = SimulatedCluster(storage, World(1, store_bytes=100e9))
    automatic, given = (
        dispatcher_on(cluster, Ledger(storage), tmp_path, resources={"in_flight_gb": value}).flow.bytes
        for value in ("auto", 5)
    )
    assert (automatic.budget, given.budget) == (60e9, 5e9)
    for sizes in (automatic, given):
        sizes.follow(200e9)
    assert (automatic.budget, given.budget) == (120e9, 5e9)


def test_an_attempt_that_has_ended_holds_no_objects_in_the_cluster(tmp_path: Path) -> None:
    """Ray frees an object with its last reference, which must not wait for Python's garbage collection."""
    gc.collect()
    gc.disable()
    try:
        dispatched(tmp_path, 0)
        assert [each for each in gc.get_objects() if type(each) is Attempt] == []
    finally:
        gc.enable()
