"""The names of the ledger's objects: one pattern for each folder, and everything else there is foreign.

File managers, synchronisation and editors leave files in any folder: `._000001.parquet`, `000001 (copy).parquet`,
`.DS_Store`, `000001.parquet.part`, `000001.parquet~`, `lost+found/`. A name counts only if it is written exactly as
this system writes it. What is foreign is never read and never deleted; `foreign_names` lists it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pipelines.store.safe_text import printable
from pipelines.store.storage import Storage

NUMBER = r"(?P<number>[0-9]{6}|[1-9][0-9]{6,11})"  # as f"{number:06d}" gives it
HEX = r"[0-9a-f]+"
NAMES = {  # folder -> the names in it, relative to it
    "_plan": re.compile(rf"{NUMBER}\.parquet"),
    "_commits": re.compile(rf"(?P<shard>{HEX})\.json"),
    "_crashes": re.compile(rf"(?P<shard>{HEX})/(?P<number>[1-9][0-9]{{0,11}})\.json"),
    "_versions": re.compile(rf"{NUMBER}/(?P<part>version\.json|pruned\.json|(?:outcomes|held)(?:-{HEX})?\.parquet)"),
    "_leases": re.compile(rf"(?P<token>{HEX})\.json"),
    "_reports": re.compile(rf"[0-9T]+-{HEX}\.(?:json|md)"),
    "_rollup": re.compile(r"commits\.parquet"),
    "_probe": re.compile(HEX),
}
SUBFOLDERS = {"_crashes": re.compile(f"{HEX}/"), "_versions": re.compile(f"{NUMBER}/")}  # where a writer was killed


def matches(folder: str, names: Iterable[str]) -> Iterator[re.Match[str]]:
    """What the names of ours in a folder say, by the groups of its pattern, in the order given."""
    return (match for name in names if (match := NAMES[folder].fullmatch(name)))


def in_folder(storage: Storage, folder: str) -> Iterator[re.Match[str]]:
    """The objects of ours in a folder of the ledger; one listing."""
    return matches(folder, storage.names(folder))


def versions_in(storage: Storage) -> dict[int, set[str]]:
    """Number of a version -> which of its objects there are, in order of the numbers; one listing.

    A number whose `version.json` is missing is not published; one with a `pruned.json` is pruned.
    """
    found: dict[int, set[str]] = {}
    for match in in_folder(storage, "_versions"):
        found.setdefault(int(match["number"]), set()).add(match["part"])
    return dict(sorted(found.items()))


def foreign_names(storage: Storage) -> list[str]:
    """What lies in the ledger's folders and is not the ledger's, printable, sorted; folders end with "/"."""
    foreign = []
    for folder, pattern in NAMES.items():
        for name in storage.names(folder, everything=True):
            subfolder = SUBFOLDERS.get(folder)
            if not pattern.fullmatch(name) and not (subfolder and subfolder.fullmatch(name)):
                foreign.append(printable(f"{folder}/{name}"))
    return sorted(foreign)
