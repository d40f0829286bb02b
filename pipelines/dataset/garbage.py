"""Delete what attempts that lost or died have left behind.

An object is deleted only if it can never be named any more:

    of an attempt      its shard has a commit, which is final, and neither the commit nor a version names it
    of a publisher     its version's number is taken, which is final, and no version names it
    a half-written     (local folders) the same of the name that it was to have, and an hour has passed, so that no
    file               attempt which is about to lose is disturbed; in the ledger the hour alone is enough, because the
                       create of a writer that comes back fails, and it writes again
    a probe            of a driver that was killed while it probed the store an hour ago

So a shard without a commit and a number that is not taken keep all they have, however old: their writers may be at
work. A minimum age is a condition on top, never the reason: what a new version borrows is old.

The order of reads is part of the proof. The candidates are listed first. Then *one* listing of the versions says both
which numbers are taken and which versions name objects. A version that is published after that listing stands on the
highest version in it or on a later one, so all that it borrows is named by that highest version, by commits, or was
written under a number that this listing does not show as taken. Commits are read last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import secrets
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.ledger.entries import FOLDERS, FORMAT, Commit, new_token, now
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import PRUNED, Version, read_version, version_listing
from pipelines.store.storage import AlreadyExists, ObjectInfo, Storage

logger = logging.getLogger("pipelines")
DELETERS = 16
WRITING_SECONDS = 3600.0  # longer than any write of one file takes
# <folder>/<shard>-<token>..., or -v<version>-<token>-<hash> of a publisher (without a token in outputs of format 1)
NAME = re.compile(
    r"[a-z]+/(?P<shard>[0-9a-f]+)-(?:v(?P<version>\d+)-(?:[0-9a-f]+-)?)?[0-9a-f]+(?:\.parquet|\.ply|/[^/]+\.ply)"
)
OF_A_VERSION = re.compile(r"_versions/(?P<version>\d{6,})/(?:outcomes|held)(?:-[0-9a-f]+)?\.parquet")
MINIMUM_AGE_SECONDS = 3600.0
LEDGER = ("_plan", "_commits", "_crashes", "_versions", "_leases", "_reports", "_rollup")


@dataclass(frozen=True)
class Garbage:
    """What `jointdit gc` deleted, or would delete."""

    output: str
    objects: tuple[ObjectInfo, ...]
    undecided: int  # objects of shards without a commit or of versions that are not published; they stay
    undecided_bytes: int

    @property
    def bytes(self) -> int:
        """Of what is deleted."""
        return sum(each.size for each in self.objects)


def collect_garbage(uri: str, older_than_seconds: float = MINIMUM_AGE_SECONDS, dry_run: bool = False) -> Garbage:
    """Delete objects that nothing names and nothing will; `older_than_seconds` by the store's own clock.

    Raises:
        StoreError: there is no job, or a commit or version is damaged: nothing is deleted then.
    """
    storage = Storage(uri)
    ledger = Ledger(storage)
    ledger.read_job()
    folders = (*FOLDERS.values(), "pointclouds")
    listed = [each for folder in folders for each in storage.list(folder)]
    listed += [each for each in storage.list("_versions") if OF_A_VERSION.fullmatch(each.path)]
    halves = [pair for folder in folders for pair in storage.unfinished(folder)]
    left = [half for folder in LEDGER for half, _ in storage.unfinished(folder)] + storage.list("_probe")
    taken, versions = _versions(storage)
    commits = ledger.read_commits(ledger.committed())
    named = {stored.path for commit in commits.values() for stored in commit.objects}
    named |= {path for version in versions for path in version.paths}
    now = _store_time(storage) if older_than_seconds > 0 or halves or left else math.inf
    orphans = [each for each in listed if each.path not in named]
    final = [each for each in orphans if is_decided(each.path, commits, taken)]
    objects = [each for each in final if each.modified <= now - older_than_seconds]
    oldest = now - max(older_than_seconds, WRITING_SECONDS)
    objects += [half for half, name in halves if half.modified <= oldest and is_decided(name, commits, taken)]
    objects += [each for each in left if each.modified <= oldest]
    if not dry_run:
        with ThreadPoolExecutor(DELETERS) as pool:
            list(pool.map(lambda each: storage.delete(each.path), objects))
    undecided_bytes = sum(each.size for each in orphans) - sum(each.size for each in final)
    return Garbage(storage.uri, tuple(objects), len(orphans) - len(final), undecided_bytes)


def _versions(storage: Storage) -> tuple[set[int], list[Version]]:
    """(numbers that are taken, versions whose objects stay): the retained ones, and the highest, pruned or not.

    A listing is not atomic: it may show a later version and miss an earlier one that was published while it ran.
    Each number below the highest that the listing misses is therefore read directly; a version found there stays.
    """
    listing = version_listing(storage)
    highest = listing.published[-1] if listing.published else 0
    versions = {number: read_version(storage, number) for number in {*listing.retained, highest} if number}
    for number in set(range(1, highest)) - set(listing.published):
        with contextlib.suppress(FileNotFoundError):  # format 1 left numbers out
            versions[number] = read_version(storage, number)
    return {*listing.published, *versions}, list(versions.values())


def is_decided(path: str, commits: Mapping[str, Commit], taken: Collection[int]) -> bool:
    """Whether what an object was written for has been decided, so that nothing new can come to name it."""
    match = NAME.fullmatch(path) or OF_A_VERSION.fullmatch(path)
    if match is None:
        return False  # no name of ours
    if match["version"] is not None:
        return int(match["version"]) in taken
    return match["shard"] in commits


def _store_time(storage: Storage) -> float:
    """Now, by the clock that also dates the store's objects."""
    name = f"_probe/{secrets.token_hex(8)}"
    storage.write_bytes(name, b"now")
    try:
        return storage.info(name).modified
    finally:
        storage.delete(name)


def prune_versions(storage: Storage, retain: int, older_than_seconds: float = MINIMUM_AGE_SECONDS) -> list[int]:
    """Prune all but the latest `retain` versions, and delete what nothing names then; returns their numbers.

    Objects younger than `older_than_seconds` stay until a later garbage collection.
    """
    assert retain >= 1, "the latest version stays"
    old = version_listing(storage).retained[:-retain]
    for number in old:
        with contextlib.suppress(AlreadyExists):  # another driver prunes it too
            mark = json.dumps({"pruned": now(), "token": new_token(), "format": FORMAT})
            storage.create_bytes(f"_versions/{number:06d}/{PRUNED}", mark.encode())
    if old:
        garbage = collect_garbage(storage.uri, older_than_seconds)
        logger.info("versions %s pruned, %d files deleted", ", ".join(map(str, old)), len(garbage.objects))
    return old
