"""What people read beside the data: README.md, stats.json and gallery/, all about the latest published version."""

from __future__ import annotations

import json

from pipelines import card, gallery
from pipelines.ledger import Ledger
from pipelines.publish import Version
from pipelines.storage import Storage


def refresh(storage: Storage, ledger: Ledger, version: Version) -> None:
    """Write them, unless they are about this version already. The card's stats.json comes last and says which it is."""
    if _described(storage) != version.number:
        job = ledger.read_job()
        gallery.write(storage, job, version)
        card.write(storage, job, version)


def _described(storage: Storage) -> int | None:
    try:
        found = json.loads(storage.read_bytes("stats.json"))
    except (FileNotFoundError, ValueError):
        return None
    number = found.get("version") if isinstance(found, dict) else None
    return number if isinstance(number, int) else None
