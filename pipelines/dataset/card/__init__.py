"""What describes a dataset beside its data, written anew with each published version.

    write(storage, job, version)          figures/, croissant.json, stats.json and, last, README.md
    is_about(storage, version) -> bool    whether they are there and about this version

    tables.py      what is looked at for it: some tables, spread over the version, however large it is
    metadata.py    the head of README.md as the Hugging Face hub and `load_dataset` read it
    croissant.py   the same for readers of Croissant
    text.py        the rest of README.md
    figures.py     histograms as SVG, the sample sheet, some rows' points in one PLY file
    summary.py     stats.json

The metadata names exactly the files of this version, so `load_dataset(<the folder>)` sees neither a loser's file nor an
older version's: configuration `default` is what was kept, `rejected` and `quarantined` are the others. Figures lie in a
folder of their version, which is written before what names them, so that they need no check.
"""

from __future__ import annotations

import json

from pipelines.dataset.card import croissant, figures, summary, text
from pipelines.dataset.card.tables import read_tables, spec_of
from pipelines.ledger.entries import Job
from pipelines.ledger.versions import Version
from pipelines.store.storage import Storage

__all__ = ["is_about", "spec_of", "write"]


def write(storage: Storage, job: Job, version: Version, has_gallery: bool = True) -> None:
    """Look at some of the version's tables and write all that describes it. Raises TransientError and StoreError."""
    seen = read_tables(storage, version)
    drawn = figures.draw(version, seen)
    for name, data in drawn.items():
        storage.write_bytes(name, data)
    storage.write_bytes("croissant.json", croissant.render(version, seen))
    figures_of = summary.statistics(version, seen)
    storage.write_bytes("stats.json", (json.dumps(figures_of, indent=2) + "\n").encode())
    storage.write_bytes("README.md", text.render(job, version, seen, list(drawn), has_gallery).encode())


def is_about(storage: Storage, version: Version) -> bool:
    """Whether README.md, stats.json and croissant.json are those of this version."""
    try:
        readme = storage.read_bytes("README.md").decode()
        numbers = json.loads(storage.read_bytes("stats.json"))
        described = json.loads(storage.read_bytes("croissant.json"))
    except (FileNotFoundError, ValueError):
        return False
    return (
        text.stamp(version) in readme
        and isinstance(numbers, dict)
        and numbers.get("version") == version.number
        and isinstance(described, dict)
        and described.get("version") == croissant.version_string(version)
    )
