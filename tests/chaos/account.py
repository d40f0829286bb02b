"""The account after a storm: each planned sample once, with its outcome and the bytes of the calm run."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipelines.dataset.validation.validate import validate
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest, read_outcomes
from pipelines.store.storage import Storage
from tests.chaos.corpus import Planted

MAX_SHOWN = 10


@dataclass
class Account:
    """The account of one job; `problems` is empty if no sample is lost, doubled, misplaced or different."""

    job: str
    planned: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    misplaced: int = 0  # samples with another outcome than planted
    compared: int = 0  # rows compared with the calm run
    different: int = 0
    crashes: int = 0  # crash records in the ledger
    problems: list[str] = field(default_factory=list)


def take_account(job: str, planted: Planted, output: str, clean: str | None, tolerance: float) -> Account:
    """Recount a job's output from its files.

    Args:
        clean: the output of the calm run, with whose rows those of the storm are compared.
        tolerance: for pixels, in units of 1/255; 0 requires equal bytes.
    """
    account = Account(job)
    storage = Storage(output)
    ledger, version = Ledger(storage), read_latest(storage)
    if version is None:
        account.problems.append("no version is published.")
        return account
    account.planned = sum(entry.samples for entry in ledger.planned())
    account.counts = dict(version.counts)
    account.crashes = sum(len(ledger.crashes(shard)) for shard in ledger.shards_with_crashes())

    table = read_outcomes(storage, version)
    outcomes = list(zip(table["id"].to_pylist(), table["outcome"].to_pylist(), strict=True))
    times = Counter(sample for sample, _ in outcomes)
    expected = planted.outcomes
    lost = [sample for sample in expected if sample not in times]
    doubled = [sample for sample, count in times.items() if count > 1]
    unknown = [sample for sample in times if sample not in expected]
    misplaced = [f"{i}: {o} and not {expected[i]}" for i, o in outcomes if i in expected and o != expected[i]]
    account.lost, account.doubled, account.misplaced = len(lost), len(doubled), len(misplaced)
    for problem, samples in (
        ("lost", lost),
        ("doubled", doubled),
        ("never planted", unknown),
        ("misplaced", misplaced),
    ):
        if samples:
            account.problems.append(f"{len(samples)} samples {problem}: {', '.join(samples[:MAX_SHOWN])}")
    if account.planned != len(expected):
        account.problems.append(f"{account.planned} samples are planned, {len(expected)} are expected.")

    checked = validate(output)
    account.problems += [*checked.problems, *checked.notes]  # after gc there are no notes either
    if clean is not None:
        _compare(account, storage, Storage(clean), tolerance)
    return account


def _compare(account: Account, storage: Storage, clean: Storage, tolerance: float) -> None:
    """Compare kept and rejected rows of the storm with those of the calm run."""
    expected = {row["id"]: row for row in _rows(clean)}
    for row in _rows(storage):
        account.compared += 1
        if row["id"] not in expected:
            account.problems.append(f"{row['id']} is not in the calm run.")
            continue
        differing = list(_differences(storage, row, clean, expected[row["id"]], tolerance))
        if differing:
            account.different += 1
            account.problems.append(f"{row['id']} differs from the calm run in {', '.join(differing)}.")
    if account.compared != sum(account.counts.get(outcome, 0) for outcome in ("kept", "rejected")):
        account.problems.append(f"{account.compared} rows were compared, the version counts {account.counts}.")


def _rows(storage: Storage) -> Iterator[dict[str, Any]]:
    version = read_latest(storage)
    assert version is not None
    for file in version.files:
        if file.outcome != "quarantined":
            yield from pq.read_table(io.BytesIO(storage.read_bytes(file.path))).to_pylist()


def _differences(
    storage: Storage, row: dict[str, Any], clean: Storage, expected: dict[str, Any], tolerance: float
) -> Iterator[str]:
    """Yield the columns that differ. Point clouds are compared by bytes, because paths contain the attempt's token."""
    for name in row:
        if name == "pointcloud":
            if not tolerance and _cloud(storage, row) != _cloud(clean, expected):
                yield name
        elif tolerance and name in ("rgb", "depth"):
            if _distance(row[name], expected[name]) > tolerance:
                yield name
        elif tolerance and name in ("quality", "z_near", "z_far"):
            continue
        elif row[name] != expected[name]:
            yield name


def _cloud(storage: Storage, row: dict[str, Any]) -> bytes | None:
    return storage.read_bytes(row["pointcloud"]) if row["pointcloud"] else None


def _distance(stored: dict[str, Any] | None, expected: dict[str, Any] | None) -> float:
    """Return the largest difference of two images of any bit depth, in units of 1/255 of their range."""
    if stored is None or expected is None or stored["bytes"] is None or expected["bytes"] is None:
        return 0.0 if stored == expected else float("inf")
    arrays = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in (stored, expected)]
    if arrays[0].shape != arrays[1].shape:
        return float("inf")
    scale = 257.0 if arrays[0].dtype != np.uint8 else 1.0
    return float(np.abs(arrays[0].astype(np.int64) - arrays[1].astype(np.int64)).max()) / scale
