"""What is left to make: the plan minus the commits, minus superseded shards.

A plan of a million shards is filtered by column, and objects are made only of pending shards. Commits are listed. After
a listing with a thousand or more new commits, their ids are stored as a roll-up, so that the next driver need not list
them:

    _rollup/commits.parquet      ids of shards that have a commit

The roll-up is a cache and is rewritten; the commits stay authoritative. A missing, damaged or outdated roll-up costs a
listing, or a request for each shard that it does not name. Publishing reads every commit, so it drops a roll-up that
names a missing one.

A ledger object remembers the commits that were found. So a run lists them once at its start, and later reads make
requests only for shards that were not known to be committed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import JointDiTError
from pipelines.ledger.counting import InputVersions
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.plan_tables import versions_of
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.parquet import parquet_bytes, read_parquet
from pipelines.store.safe_text import reason_of
from pipelines.store.storage import Storage

ROLL_UP = "_rollup/commits.parquet"
ROLL_UP_SCHEMA = pa.schema([("shard", pa.string())], metadata={"format": "1"})
ROLL_UP_FROM = 1000  # new commits: one page of an S3 listing
LISTED_AT_ONCE = 64  # commits that a listing returns in the time of one single request
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remaining:
    """What a job has left to make."""

    pending: list[PlannedShard]  # in (plan, position) order
    committed: int  # planned shards that have a commit


def read_remaining(ledger: Ledger) -> Remaining:
    """Return what is planned and not committed. Raises StoreError and TransientError."""
    tables = ledger.plan_tables()  # before the commits, so that every shard in it is checked for a commit
    known = read_roll_up(ledger.storage) if ledger.known_commits is None else ledger.known_commits
    missing = {number: _not_in(table["shard"], known) for number, table in tables.items()}
    shards = [tables[number]["shard"][place].as_py() for number in missing for place in missing[number]]
    if len(shards) * LISTED_AT_ONCE <= len(known):
        committed = which_exist(ledger, shards)
    else:
        committed = ledger.committed()
        keep_roll_up(ledger.storage, committed, len(known))
    new = pa.array(sorted(committed), pa.string())
    ledger.known_commits = known
    remember_commits(ledger, new)
    versions = InputVersions(versions_of(tables))
    pending: list[PlannedShard] = []
    uncommitted = 0
    for number, table in tables.items():
        places = missing[number]
        left = [places[place] for place in _not_in(table["shard"].take(pa.array(places, pa.int64())), new)]
        uncommitted += len(left)
        entries = (entry for entry in ledger.entries(number, left) if not versions.is_superseded(entry))
        pending += [entry if entry.is_first else replace(entry, moved=versions.moved(entry)) for entry in entries]
    return Remaining(pending, sum(len(table) for table in tables.values()) - uncommitted)


def read_roll_up(storage: Storage) -> pa.Array:
    """Return the ids of committed shards as (n) strings; empty where there is no readable roll-up."""
    try:
        table = read_parquet(storage.read_bytes(ROLL_UP))
        if table.schema.equals(ROLL_UP_SCHEMA, check_metadata=True):
            return pa.concat_arrays(table["shard"].chunks) if len(table) else pa.array([], pa.string())
        reason = "another version wrote it"
    except FileNotFoundError:
        return pa.array([], pa.string())
    except (JointDiTError, pa.ArrowException, OSError) as error:
        reason = reason_of(error)
    logger.warning("%s cannot be read, which costs one listing: %s", storage.uri_of(ROLL_UP), reason)
    return pa.array([], pa.string())


def keep_roll_up(storage: Storage, committed: Collection[str], known: int) -> None:
    """Write the ids of committed shards if they are many more than the roll-up has. Failures are only logged."""
    if len(committed) - known < ROLL_UP_FROM:
        return
    table = pa.table({"shard": pa.array(sorted(committed), pa.string())}, schema=ROLL_UP_SCHEMA)
    try:
        storage.write_bytes(ROLL_UP, parquet_bytes(table))
    except (JointDiTError, OSError) as error:
        logger.warning("%s cannot be written, which costs one listing: %s", storage.uri_of(ROLL_UP), error)


def remember_commits(ledger: Ledger, shards: pa.Array) -> None:
    """Note shards (n) whose commits were seen, so that this ledger object need not look for them again."""
    if ledger.known_commits is not None:
        new = shards.filter(pc.invert(pc.is_in(shards, value_set=ledger.known_commits)))
        ledger.known_commits = pa.concat_arrays([ledger.known_commits, new])


def drop_roll_up(ledger: Ledger) -> None:
    """Forget the commits that were found and delete the roll-up, because a commit that it names may be missing."""
    ledger.known_commits = None
    ledger.storage.delete(ROLL_UP)


def _not_in(shards: pa.ChunkedArray, known: pa.Array) -> list[int]:
    """Return the positions of the shards that are not known."""
    places: list[int] = pc.indices_nonzero(pc.invert(pc.is_in(shards, value_set=known))).to_pylist()
    return places


def found_commits(ledger: Ledger, shards: list[str], known: int) -> set[str]:
    """Return those of some shards that have a commit, from requests or a listing, whichever takes less time.

    Args:
        known: how many commits a listing returns besides theirs.
    """
    if len(shards) * LISTED_AT_ONCE <= known:
        return which_exist(ledger, shards)
    return ledger.committed() & set(shards)


def which_exist(ledger: Ledger, shards: list[str]) -> set[str]:
    """Return those of a few shards that have a commit, with one request each."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        exist = pool.map(ledger.is_committed, shards)
        return {shard for shard, exists in zip(shards, exist, strict=True) if exists}
