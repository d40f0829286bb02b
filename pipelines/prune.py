"""Keep the latest versions only: `output.retain_versions`.

    _versions/000001/pruned.json     this version is not to be read any more; create-only

A pruned version keeps its number and its version.json; garbage.py deletes the objects that it alone named, its outcomes
included. What commits name stays: later versions are made from it. So do the decisions that stand in a retained
version, which names them. The highest version of the listing that this decides from is never pruned.
"""

from __future__ import annotations

import contextlib
import json
import logging

from pipelines.garbage import MINIMUM_AGE_SECONDS, collect_garbage
from pipelines.ledger import FORMAT, new_token, now
from pipelines.publish import PRUNED, version_listing
from pipelines.storage import AlreadyExists, Storage

logger = logging.getLogger("pipelines")


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
