"""What people read beside the data: README.md, stats.json and gallery/, all about the latest published version."""

from __future__ import annotations

import json

from pipelines import card, gallery
from pipelines.ledger import Ledger
from pipelines.publish import Version, read_latest
from pipelines.storage import Storage


def refresh(storage: Storage, ledger: Ledger, version: Version) -> None:
    """Write them, unless they are about this version already. The card's stats.json comes last and says which it is.

    They are the only files that are rewritten, so of two drivers the slower must not leave an older version's.
    """
    newest: Version | None = version
    while newest is not None and _described(storage) != newest.number:
        job = ledger.read_job()
        if newest.spec["task"] != "encode":  # latents are nothing to look at
            gallery.write(storage, job, newest)
        card.write(storage, job, newest)
        newest = read_latest(storage)


def _described(storage: Storage) -> int | None:
    try:
        found = json.loads(storage.read_bytes("stats.json"))
    except (FileNotFoundError, ValueError):
        return None
    number = found.get("version") if isinstance(found, dict) else None
    return number if isinstance(number, int) else None
