"""The exact account after a storm: each planned sample once, in its place, with the bytes of a run without faults."""

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

MOST_SHOWN = 10


@dataclass
class Account:
    """What became of one job; `problems` is empty when nothing is lost, doubled, misplaced or different."""

    job: str
    planned: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    misplaced: int = 0  # samples that ended elsewhere than was planted
    compared: int = 0  # rows against the run without faults
    different: int = 0
    crashes: int = 0  # records in the ledger
    problems: list[str] = field(default_factory=list)


def take_account(job: str, planted: Planted, output: str, clean: str, tolerance: float) -> Account:
    """Recount a job's output from its files. `tolerance`: of pixels, in 255ths; 0 demands equal bytes."""
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
    found = list(zip(table["id"].to_pylist(), table["outcome"].to_pylist(), strict=True))
    times = Counter(sample for sample, _ in found)
    wanted = planted.outcomes
    lost = [sample for sample in wanted if sample not in times]
    doubled = [sample for sample, count in times.items() if count > 1]
    strange = [sample for sample in times if sample not in wanted]
    misplaced = [f"{i}: {o} and not {wanted[i]}" for i, o in found if i in wanted and o != wanted[i]]
    account.lost, account.doubled, account.misplaced = len(lost), len(doubled), len(misplaced)
    for what, which in (("lost", lost), ("doubled", doubled), ("never planted", strange), ("misplaced", misplaced)):
        if which:
            account.problems.append(f"{len(which)} samples {what}: {', '.join(which[:MOST_SHOWN])}")
    if account.planned != len(wanted):
        account.problems.append(f"{account.planned} samples are planned and {len(wanted)} were to be.")

    checked = validate(output)
    account.problems += [*checked.problems, *checked.notes]  # after gc there is nothing untidy either
    _compare(account, storage, Storage(clean), tolerance)
    return account


def _compare(account: Account, storage: Storage, clean: Storage, tolerance: float) -> None:
    """Kept and rejected rows of the storm against those of the run without faults."""
    expected = {row["id"]: row for row in _rows(clean)}
    for row in _rows(storage):
        account.compared += 1
        if row["id"] not in expected:
            account.problems.append(f"{row['id']} is in no row of the run without faults.")
            continue
        differing = list(_differences(storage, row, clean, expected[row["id"]], tolerance))
        if differing:
            account.different += 1
            account.problems.append(f"{row['id']} differs from the run without faults in {', '.join(differing)}.")
    if account.compared != sum(account.counts.get(outcome, 0) for outcome in ("kept", "rejected")):
        account.problems.append(f"{account.compared} rows were compared, and the version counts {account.counts}.")


def _rows(storage: Storage) -> Iterator[dict[str, Any]]:
    version = read_latest(storage)
    assert version is not None
    for file in version.files:
        if file.outcome != "quarantined":
            yield from pq.read_table(io.BytesIO(storage.read_bytes(file.path))).to_pylist()


def _differences(
    storage: Storage, row: dict[str, Any], clean: Storage, expected: dict[str, Any], tolerance: float
) -> Iterator[str]:
    """Names of the columns that differ; a point cloud by its bytes, because its path holds the attempt's token."""
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
    """The largest difference of two images of any depth, in 255ths of their range."""
    if stored is None or expected is None or stored["bytes"] is None or expected["bytes"] is None:
        return 0.0 if stored == expected else float("inf")
    arrays = [np.asarray(Image.open(io.BytesIO(each["bytes"]))) for each in (stored, expected)]
    if arrays[0].shape != arrays[1].shape:
        return float("inf")
    scale = 257.0 if arrays[0].dtype != np.uint8 else 1.0
    return float(np.abs(arrays[0].astype(np.int64) - arrays[1].astype(np.int64)).max()) / scale
