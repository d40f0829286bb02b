"""What people read beside the data: README.md, stats.json, croissant.json, gallery/; all about the latest version."""

from __future__ import annotations

from pipelines.dataset import card, gallery
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest
from pipelines.store.storage import Storage


def refresh(storage: Storage, ledger: Ledger) -> None:
    """Write what is not about the latest version already.

    They are the only files that are rewritten, so of two drivers the slower may put an older version's over a newer
    one's, and may die right after. So nothing that was written is trusted: each file is read, by every run at its end,
    until all are about what is the latest version by then.
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
