"""Rewrite README.md, stats.json, croissant.json and gallery/ for the latest version."""

from __future__ import annotations

from pipelines.dataset import card, gallery
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest
from pipelines.store.storage import Storage


def refresh(storage: Storage, ledger: Ledger) -> None:
    """Rewrite the descriptions that are not about the latest version.

    They are the only files that are rewritten, so a slow driver may overwrite those of a newer version and may then
    die. Therefore every run reads each file back at its end, until all are about the version that is latest by then.
    """
    job = ledger.read_job()
    while (newest := read_latest(storage)) is not None:
        is_shown = not gallery.has_images(newest) or gallery.is_about(storage, newest)
        is_described = card.is_about(storage, newest)
        if is_shown and is_described:
            return
        if not is_shown:
            gallery.write(storage, newest)
        if not is_described:
            card.write(storage, job, newest)
