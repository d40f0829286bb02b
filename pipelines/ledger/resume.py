"""What is left to make: plan minus commits, minus what newer input supersedes.

A million shards are looked at by column, and objects are made of the pending ones alone. Commits are listed; a listing
of a thousand and more new ones is kept as a roll-up, so that the next driver need not list them again:

    _rollup/commits.parquet      ids of shards that have a commit

It is a cache, and rewritten: the commits stay what counts. One that is missing, damaged or behind costs a listing or a
look at each shard that it does not name. One that names a commit that is gone is dropped when a version is published,
which reads every commit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import JointDiTError
from pipelines.ledger.counting import InputVersions
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import READERS, Ledger
from pipelines.ledger.plan_tables import versions_of
from pipelines.store.parquet import parquet_bytes, read_parquet
from pipelines.store.storage import Storage

ROLL_UP = "_rollup/commits.parquet"
ROLL_UP_SCHEMA = pa.schema([("shard", pa.string())], metadata={"format": "1"})
ROLL_UP_FROM = 1000  # new commits: a page of an S3 listing
LISTED_AT_ONCE = 64  # commits that a listing gives in the time that looking for a single one takes
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Left:
    """What a job has left to make."""

    pending: list[PlannedShard]  # in (plan, position) order
    committed: int  # planned shards that have a commit


def read_remaining(ledger: Ledger) -> Left:
    """What is planned and not committed. Raises StoreError and TransientError."""
    tables = ledger.plan_tables()  # before the commits: a shard that is planned later has none that is looked at
    known = read_roll_up(ledger.storage)
    missing = {number: _not_in(table["shard"], known) for number, table in tables.items()}
    shards = [tables[number]["shard"][place].as_py() for number in missing for place in missing[number]]
    if len(shards) * LISTED_AT_ONCE <= len(known):
        found = _which_exist(ledger, shards)
    else:
        found = ledger.committed()
        keep_roll_up(ledger.storage, found, len(known))
    new = pa.array(sorted(found), pa.string())
    versions = InputVersions(versions_of(tables))
    pending: list[PlannedShard] = []
    uncommitted = 0
    for number, table in tables.items():
        places = missing[number]
        left = [places[place] for place in _not_in(table["shard"].take(pa.array(places, pa.int64())), new)]
        uncommitted += len(left)
        pending += [entry for entry in ledger.entries(number, left) if not versions.is_superseded(entry)]
    return Left(pending, sum(len(table) for table in tables.values()) - uncommitted)


def read_roll_up(storage: Storage) -> pa.Array:
    """Ids of shards that have a commit, (n) strings; none where there is no roll-up that can be read."""
    try:
        table = read_parquet(storage.read_bytes(ROLL_UP))
        if table.schema.equals(ROLL_UP_SCHEMA, check_metadata=True):
            return pa.concat_arrays(table["shard"].chunks) if len(table) else pa.array([], pa.string())
        reason = "it is of another version"
    except FileNotFoundError:
        return pa.array([], pa.string())
    except (JointDiTError, pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
    logger.warning("%s cannot be read, which only costs a listing: %s", storage.uri_of(ROLL_UP), reason)
    return pa.array([], pa.string())


def keep_roll_up(storage: Storage, committed: Collection[str], known: int) -> None:
    """Keep the ids of committed shards, if they are many more than the roll-up knows. A cache: no failure matters."""
    if len(committed) - known < ROLL_UP_FROM:
        return
    table = pa.table({"shard": pa.array(sorted(committed), pa.string())}, schema=ROLL_UP_SCHEMA)
    try:
        storage.write_bytes(ROLL_UP, parquet_bytes(table))
    except (JointDiTError, OSError) as error:
        logger.warning("%s was not kept, which only costs a listing: %s", storage.uri_of(ROLL_UP), error)


def drop_roll_up(storage: Storage) -> None:
    """Forget it: a commit that it names may be gone."""
    storage.delete(ROLL_UP)


def _not_in(shards: pa.ChunkedArray, known: pa.Array) -> list[int]:
    """Positions of the shards that are not known."""
    places: list[int] = pc.indices_nonzero(pc.invert(pc.is_in(shards, value_set=known))).to_pylist()
    return places


def _which_exist(ledger: Ledger, shards: list[str]) -> set[str]:
    """Those of a few shards that have a commit, each looked for."""
    with ThreadPoolExecutor(READERS) as pool:
        return {shard for shard, there in zip(shards, pool.map(ledger.is_committed, shards), strict=True) if there}
