"""The dataset card, rewritten with each published version.

    write(storage, job, version)          figures/, croissant.json, stats.json and, last, README.md
    is_about(storage, version) -> bool    whether they exist and are about this version

    tables.py         reads statistics and sample rows from some tables, spread over the version
    metadata.py       the YAML head of README.md, as the Hugging Face hub and `load_dataset` read it
    croissant.py      croissant.json
    text.py           README.md, from README.md.jinja
    figures.py        the sample sheet, and the points of some rows in one PLY file
    summary.py        stats.json

The metadata names exactly the files of this version, so `load_dataset(<the folder>)` sees no file of a failed attempt
or an older version: configuration `default` has kept samples, `rejected` and `quarantined` the others. Figures are
stored in a folder of their version and written before the files that name them, so they need no check.
"""

from __future__ import annotations

import json

from pipelines.dataset.card import croissant, figures, summary, text
from pipelines.dataset.card.tables import read_tables
from pipelines.ledger.entries import Job
from pipelines.ledger.versions import Version
from pipelines.store.storage import Storage

__all__ = ["is_about", "write"]


def write(storage: Storage, job: Job, version: Version, has_gallery: bool = True) -> None:
    """Read some of the version's tables and write all that describes it. Raises TransientError and StoreError."""
    sampled = read_tables(storage, version)
    drawn = figures.draw(version, sampled)
    for name, data in drawn.items():
        storage.write_bytes(name, data)
    storage.write_bytes("croissant.json", croissant.render(version, sampled))
    statistics = summary.statistics(version, sampled)
    storage.write_bytes("stats.json", (json.dumps(statistics, indent=2) + "\n").encode())
    storage.write_bytes("README.md", text.render(job, version, sampled, list(drawn), has_gallery).encode())


def is_about(storage: Storage, version: Version) -> bool:
    """Return whether README.md, stats.json and croissant.json are about this version."""
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
