"""The names of the ledger's objects: one pattern per folder.

Everything else in these folders is foreign. File managers, synchronisation tools and editors leave files in any folder:
`._000001.parquet`, `000001 (copy).parquet`, `.DS_Store`, `000001.parquet.part`, `000001.parquet~`, `lost+found/`. A
name counts only if it is written exactly as this system writes it. Foreign files are never read and never deleted;
`foreign_names` lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pipelines.store.safe_text import printable
from pipelines.store.storage import Storage

NUMBER = r"(?P<number>[0-9]{6}|[1-9][0-9]{6,11})"  # as f"{number:06d}" gives it
HEX = r"[0-9a-f]+"
NAMES = {  # folder -> pattern of the names in it, relative to it
    "_plan": re.compile(rf"{NUMBER}\.parquet"),
    "_commits": re.compile(rf"(?P<shard>{HEX})\.json"),
    "_crashes": re.compile(rf"(?P<shard>{HEX})/(?P<number>[1-9][0-9]{{0,11}})\.json"),
    "_versions": re.compile(
        rf"{NUMBER}/(?P<part>version\.json|pruned\.json|(?:outcomes|held)(?:-{HEX})?\.parquet)"
        rf"|segments/(?P<segment>[0-9]{{6,}})-{HEX}-{HEX}(?:-shards)?\.parquet"
    ),
    "_leases": re.compile(rf"(?P<token>{HEX})\.json"),
    "_reports": re.compile(rf"[0-9T]+-{HEX}\.(?:json|md)"),
    "_rollup": re.compile(r"commits\.parquet"),
    "_probe": re.compile(HEX),
}
SUBFOLDERS = {
    "_crashes": re.compile(f"{HEX}/"),
    "_versions": re.compile(f"{NUMBER}/|segments/"),
}  # left by killed writers


def matches(folder: str, names: Iterable[str]) -> Iterator[re.Match[str]]:
    """Yield the matches of those names that belong to the ledger, in the given order."""
    return (match for name in names if (match := NAMES[folder].fullmatch(name)))


def in_folder(storage: Storage, folder: str) -> Iterator[re.Match[str]]:
    """Yield the matches of the ledger's objects in a folder, from one listing."""
    return matches(folder, storage.names(folder))


def versions_in(storage: Storage) -> dict[int, set[str]]:
    """Map the numbers of versions, in order, to the names of their objects, from one listing.

    A number without `version.json` is not published. A number with `pruned.json` is pruned.
    """
    parts: dict[int, set[str]] = {}
    for match in in_folder(storage, "_versions"):
        if match["number"] is not None:
            parts.setdefault(int(match["number"]), set()).add(match["part"])
    return dict(sorted(parts.items()))


def plan_file(number: int) -> str:
    """Return the name of a plan file."""
    return f"_plan/{number:06d}.parquet"


def version_object(number: int, part: str) -> str:
    """Return the name of an object of a version, such as "version.json"."""
    return f"_versions/{number:06d}/{part}"


def segment_object(name: str) -> str:
    """Return the path of an object of a segment."""
    return f"_versions/segments/{name}"


def foreign_names(storage: Storage) -> list[str]:
    """Return what lies in the ledger's folders and is foreign, printable and sorted. Folders end with "/"."""
    foreign = []
    for folder, pattern in NAMES.items():
        for name in storage.names(folder, everything=True):
            subfolder = SUBFOLDERS.get(folder)
            if not pattern.fullmatch(name) and not (subfolder and subfolder.fullmatch(name)):
                foreign.append(printable(f"{folder}/{name}"))
    return sorted(foreign)
