"""Garbage collection: delete what failed or killed attempts have left behind.

An object is deleted only if nothing can ever name it again:

    of an attempt      its shard has a commit, which is final, and neither the commit nor a version names the object of
    a publisher     its version number is taken, which is final, and no version names the object a temporary file
    (local folders) the same, for the name that it was to get, and an hour has passed, so that an attempt
                       that is about to lose is not disturbed; in the ledger the hour alone is enough, because a writer
                       that resumes fails to create its object and writes it again
    a probe            an hour has passed since a driver was killed while it probed the store

So a shard without a commit, and a number that is not taken, keep all their objects however old, because their writers
may be running. A minimum age is an additional condition and never the reason: what a new version borrows is old.

The order of reads is part of the proof. Candidates are listed first. Then *one* listing of the versions says which
numbers are taken and which versions name objects. A version that is published after that listing builds on its highest
version or on a later one. All that it borrows is therefore named by that highest version, named by commits, or written
under a number that the listing does not show as taken. Commits are read last, and only those of shards with objects
that no version names.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import secrets
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jointdit.errors import StoreError
from pipelines.ledger.entries import FORMAT, OBJECT_FOLDERS, Commit, json_bytes, new_token, now
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.names import version_object
from pipelines.ledger.versions import PRUNED, Version, read_version, version_listing
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.storage import AlreadyExists, ObjectInfo, Storage

logger = logging.getLogger("pipelines")
WRITING_SECONDS = 3600.0  # longer than any write of one file takes
# <folder>/<shard>-<token>..., or -v<version>-<token>-<hash> of a publisher (without a token in outputs of format 1)
NAME = re.compile(
    r"[a-z]+/(?P<shard>[0-9a-f]+)-(?:v(?P<version>\d+)-(?:[0-9a-f]+-)?)?[0-9a-f]+(?:\.parquet|\.ply|/[^/]+\.ply)"
)
OF_A_VERSION = re.compile(
    r"_versions/(?:(?P<version>\d{6,})/(?:outcomes|held)(?:-[0-9a-f]+)?"
    r"|segments/(?P<segment>\d{6,})-[0-9a-f]+-[0-9a-f]+(?:-shards)?)\.parquet"
)
MINIMUM_AGE_SECONDS = 3600.0
LEDGER = ("_plan", "_commits", "_crashes", "_versions", "_leases", "_reports", "_rollup")


@dataclass(frozen=True)
class Garbage:
    """What `jointdit gc` deleted, or would delete."""

    output: str
    objects: tuple[ObjectInfo, ...]
    undecided: int  # objects of shards without a commit or of unpublished versions; they stay
    undecided_bytes: int

    @property
    def bytes(self) -> int:
        """The size of all deleted objects."""
        return sum(info.size for info in self.objects)


def collect_garbage(uri: str, older_than_seconds: float = MINIMUM_AGE_SECONDS, dry_run: bool = False) -> Garbage:
    """Delete objects that nothing names and nothing will name.

    Args:
        older_than_seconds: minimum age of an object, by the store's own clock.

    Raises:
        StoreError: there is no job, or a commit or version is damaged. Nothing is deleted then.
    """
    storage = Storage(uri)
    ledger = Ledger(storage)
    ledger.read_job()
    listed = [info for folder in OBJECT_FOLDERS for info in storage.list(folder)]
    listed += [info for info in storage.list("_versions") if OF_A_VERSION.fullmatch(info.path)]
    temporary = [pair for folder in OBJECT_FOLDERS for pair in storage.unfinished(folder)]
    leftovers = [info for folder in LEDGER for info, _ in storage.unfinished(folder)] + storage.list("_probe")
    taken, versions = _versions(storage)
    named = {path for version in versions for path in _paths_of(storage, version)}
    orphans = [info for info in listed if info.path not in named]
    in_question = {shard_of(name) for name in [*(i.path for i in orphans), *(name for _, name in temporary)]}
    commits = ledger.read_commits(sorted(filter(None, in_question)))
    named = {stored.path for commit in commits.values() for stored in commit.objects}
    needs_age = older_than_seconds > 0 or temporary or leftovers
    now = _store_time(storage) if needs_age else math.inf
    orphans = [info for info in orphans if info.path not in named]
    final = [info for info in orphans if is_decided(info.path, commits, taken)]
    objects = [info for info in final if info.modified <= now - older_than_seconds]
    oldest = now - max(older_than_seconds, WRITING_SECONDS)
    objects += [info for info, name in temporary if info.modified <= oldest and is_decided(name, commits, taken)]
    objects += [info for info in leftovers if info.modified <= oldest]
    if not dry_run:
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            list(pool.map(lambda info: storage.delete(info.path), objects))
    undecided_bytes = sum(info.size for info in orphans) - sum(info.size for info in final)
    return Garbage(storage.uri, tuple(objects), len(orphans) - len(final), undecided_bytes)


def _versions(storage: Storage) -> tuple[set[int], list[Version]]:
    """Return (numbers that are taken, versions whose objects stay): the retained ones, and the highest even if pruned.

    A listing is not atomic: it may show a later version and miss an earlier one that was published while it ran.
    Therefore each missing number below the highest is read directly. A version that is found there stays.
    """
    listing = version_listing(storage)
    highest = listing.published[-1] if listing.published else 0
    versions = {number: read_version(storage, number) for number in {*listing.retained, highest} if number}
    for number in set(range(1, highest)) - set(listing.published):
        with contextlib.suppress(FileNotFoundError):  # format 1 skipped numbers
            versions[number] = read_version(storage, number)
    return {*listing.published, *versions}, list(versions.values())


def _paths_of(storage: Storage, version: Version) -> set[str]:
    """Return what a version names; nothing if it has been pruned and collected since the versions were listed."""
    try:
        return set(version.paths())
    except FileNotFoundError as error:
        if version.number in version_listing(storage).pruned:
            return version.own_paths
        raise StoreError(f"{error} is missing, so nothing is deleted: restore it from a backup.") from error


def is_decided(path: str, commits: Mapping[str, Commit], taken: Collection[int]) -> bool:
    """Return whether the shard or version that an object was written for is final, so that nothing new can name it."""
    if match := OF_A_VERSION.fullmatch(path):
        return int(match["version"] or match["segment"]) in taken
    match = NAME.fullmatch(path)
    if match is None:
        return False  # not written by this system
    if match["version"] is not None:
        return int(match["version"]) in taken
    return match["shard"] in commits


def shard_of(path: str) -> str:
    """Return the id of the shard that an object was written for; empty for other objects."""
    match = NAME.fullmatch(path)
    return match["shard"] if match else ""


def _store_time(storage: Storage) -> float:
    """Return the current time by the clock that dates the store's objects."""
    name = f"_probe/{secrets.token_hex(8)}"
    storage.write_bytes(name, b"now")
    try:
        return storage.info(name).modified
    finally:
        storage.delete(name)


def prune_versions(storage: Storage, retain: int, older_than_seconds: float = MINIMUM_AGE_SECONDS) -> list[int]:
    """Prune all but the latest `retain` versions and delete what nothing names then. Returns their numbers.

    Objects younger than `older_than_seconds` stay until a later garbage collection.
    """
    assert retain >= 1, "the latest version stays"
    old = version_listing(storage).retained[:-retain]
    for number in old:
        with contextlib.suppress(AlreadyExists):  # another driver prunes it too
            mark = json_bytes({"pruned": now(), "token": new_token(), "format": FORMAT})
            storage.create_bytes(version_object(number, PRUNED), mark)
    if old:
        garbage = collect_garbage(storage.uri, older_than_seconds)
        logger.info("versions %s pruned, %d files deleted", ", ".join(map(str, old)), len(garbage.objects))
    return old
