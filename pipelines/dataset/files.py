"""The Parquet files of one version, for engines that read files: DuckDB, Polars, Spark, Ray Data."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.dataset.diff import require_version
from pipelines.ledger.entries import Outcome
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import require_latest
from pipelines.store.storage import Storage


def dataset_files(uri: str, number: int | None = None, outcome: Outcome = "kept") -> Iterator[str]:
    """Yield the addresses of the tables of a version, in the order of the plan.

    A glob over `data/` also finds tables of other versions and of attempts that lost.

    Args:
        number: of the version; default: the latest.
        outcome: kept, rejected or quarantined.

    Raises:
        StoreError: there is no job. PermanentError: there is no such version.
    """
    storage = Storage(uri)
    Ledger(storage).read_job()
    version = require_latest(storage) if number is None else require_version(storage, number)
    return (storage.uri_of(file.path) for file in version.iter_files() if file.outcome == outcome)
