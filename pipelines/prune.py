"""Keep the latest versions only: `output.retain_versions`.

    _versions/000001/pruned.json     this version is not to be read any more; create-only

A pruned version keeps its number and its version.json, so that no slow publisher can take the name again; its outcomes
go, and garbage.py deletes the files that it alone named. What commits name stays: later versions are made from it. So
does the version whose decisions stand in the latest one, however old it is.
"""

from __future__ import annotations

import contextlib
import json
import logging

from pipelines.garbage import collect_garbage
from pipelines.ledger import FORMAT, now
from pipelines.publish import PRUNED, read_latest, version_numbers
from pipelines.storage import AlreadyExists, Storage

logger = logging.getLogger("pipelines")


def prune_versions(storage: Storage, retain: int) -> list[int]:
    """Prune all but the latest `retain` versions, and delete what nothing names then; returns their numbers."""
    latest = read_latest(storage)
    old = [number for number in version_numbers(storage)[:-retain] if latest is None or number != latest.held]
    for number in old:
        folder = f"_versions/{number:06d}"
        with contextlib.suppress(AlreadyExists):  # another driver prunes it too
            storage.create_bytes(f"{folder}/{PRUNED}", json.dumps({"pruned": now(), "format": FORMAT}).encode())
        storage.delete(f"{folder}/outcomes.parquet")
    if old:
        garbage = collect_garbage(storage.uri)
        logger.info("versions %s pruned, %d files deleted", ", ".join(map(str, old)), len(garbage.objects))
    return old
