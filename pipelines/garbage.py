"""Delete what attempts that lost or died have left behind.

An object goes only if it can never be named any more:

    of an attempt      its shard has a commit, which is final, and does not name it
    of a publisher     its version is published, which is final, and no version names it

    a half-written     (local folders) the same of the name it was to have, and an hour has passed, so that no attempt
    file               which is about to lose is disturbed

So a shard without a commit and a version that was never published keep all they have, however old: their writers may be
at work. Age is a condition on top, never the reason.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.finish import FOLDERS
from pipelines.ledger import Commit, Ledger
from pipelines.publish import read_version, version_numbers
from pipelines.storage import ObjectInfo, Storage

DELETERS = 16
WRITING_SECONDS = 3600.0  # longer than any write of one file takes
# <folder>/<shard>-<token>..., or -v<version>-<hash> where a publisher left superseded rows out
NAME = re.compile(r"[a-z]+/(?P<shard>[0-9a-f]+)-(?:v(?P<version>\d+)-)?[0-9a-f]+[./]")


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


def collect_garbage(uri: str, older_than_seconds: float = 0.0, dry_run: bool = False) -> Garbage:
    """Delete objects that nothing names and nothing will; `older_than_seconds` by the store's own clock.

    Raises:
        StoreError: there is no job, or a commit or version is damaged: nothing is deleted then.
    """
    storage = Storage(uri)
    ledger = Ledger(storage)
    ledger.read_job()
    folders = (*FOLDERS.values(), "pointclouds")
    listed = [each for folder in folders for each in storage.list(folder)]
    halves = [pair for folder in folders for pair in storage.unfinished(folder)]
    now = _store_time(storage) if older_than_seconds > 0 or halves else math.inf
    commits = ledger.read_commits(ledger.committed())
    versions = {number: read_version(storage, number) for number in version_numbers(storage)}
    named = {stored.path for commit in commits.values() for stored in commit.objects}
    named |= {path for version in versions.values() for path in version.paths}
    orphans = [each for each in listed if each.path not in named]
    published = set(version_numbers(storage, with_pruned=True))
    final = [each for each in orphans if is_decided(each.path, commits, published)]
    objects = [each for each in final if each.modified <= now - older_than_seconds]
    oldest = now - max(older_than_seconds, WRITING_SECONDS)
    objects += [half for half, name in halves if half.modified <= oldest and is_decided(name, commits, published)]
    if not dry_run:
        with ThreadPoolExecutor(DELETERS) as pool:
            list(pool.map(lambda each: storage.delete(each.path), objects))
    undecided_bytes = sum(each.size for each in orphans) - sum(each.size for each in final)
    return Garbage(storage.uri, tuple(objects), len(orphans) - len(final), undecided_bytes)


def is_decided(path: str, commits: Mapping[str, Commit], versions: Collection[int]) -> bool:
    """Whether what an object was written for has been decided, so that nothing new can come to name it."""
    match = NAME.match(path)
    if match is None:
        return False  # no name of ours
    if match["version"] is not None:
        return int(match["version"]) in versions
    return match["shard"] in commits


def _store_time(storage: Storage) -> float:
    """Now, by the clock that also dates the store's objects."""
    name = f"_probe/{secrets.token_hex(8)}"
    storage.write_bytes(name, b"now")
    try:
        return storage.info(name).modified
    finally:
        storage.delete(name)
