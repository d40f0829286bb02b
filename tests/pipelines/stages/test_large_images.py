"""A shard of large images in a bounded memory: what it does not hold is read again, and nothing else changes."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipelines.stages.read
from pipelines.run.rounds import pending_shards
from pipelines.stages.finish import finish_shard
from pipelines.stages.read import read_shard
from tests.local_job import LocalJob, job_in
from tests.stand_in import StandInWorker

IMAGES = 10
SIDE = 160
A_ROW = SIDE * SIDE * 3


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(IMAGES):
        level = np.full((SIDE, SIDE, 3), 10 * number, np.uint8)
        level[number : number + 20] = 255
        Image.fromarray(level).save(folder / f"{number:02d}.png")
    return folder


def job(folder: Path, photos: Path, **output: Any) -> LocalJob:
    folder.mkdir()
    sections: dict[str, Any] = {"input": {"uri": str(photos), "samples_per_row": 2}}
    sections["output"] = {"uri": str(folder / "out"), "shard_rows": IMAGES, **output}
    made = job_in(folder, task="depth", **sections)
    made.plan()
    return made


def tables(made: LocalJob) -> pa.Table:
    storage = made.context.storage
    data = [storage.read_bytes(f"data/{name}") for name in storage.names("data", ".parquet")]
    return pa.concat_tables([pq.read_table(io.BytesIO(each)) for each in data])


def test_rows_that_are_read_again_give_the_same_result(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = job(tmp_path / "whole", photos, points="ply")
    whole.run()
    monkeypatch.setattr(pipelines.stages.read, "HELD_BYTES", 3 * A_ROW)
    bounded = job(tmp_path / "bounded", photos, points="ply")
    (receipt,) = bounded.run()
    assert receipt.counts == {"kept": 2 * IMAGES, "rejected": 0, "quarantined": 0}
    names = [name for name in tables(whole).column_names if name != "pointcloud"]  # whose paths have the token
    assert tables(bounded).select(names).equals(tables(whole).select(names))
    for path in tables(bounded)["pointcloud"].to_pylist():
        number = path.rpartition("/")[2]
        (other,) = (name for name in whole.context.storage.names("pointclouds") if name.endswith(number))
        storage = whole.context.storage
        assert bounded.context.storage.read_bytes(path) == storage.read_bytes(f"pointclouds/{other}")


def peaks(made: LocalJob) -> tuple[float, float]:
    """What reading and finishing a shard take at most, in rows of arrays."""
    (entry,) = pending_shards(made.ledger)
    worker = StandInWorker(made.context, "cpu", 1)
    worker.set_up()
    tracemalloc.start()
    try:
        rows, parts = read_shard(made.context, entry)
        read = tracemalloc.get_traced_memory()[1]
        results = [worker.generate(part)[0] for part in parts]
        tracemalloc.reset_peak()
        finish_shard(made.context, entry, rows, *results)
        return read / A_ROW, tracemalloc.get_traced_memory()[1] / A_ROW
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_held_bytes_and_not_with_the_shard(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_read, whole_finish = peaks(job(tmp_path / "whole", photos))
    monkeypatch.setattr(pipelines.stages.read, "HELD_BYTES", 2 * A_ROW)
    read, finish = peaks(job(tmp_path / "bounded", photos))
    assert read < whole_read - (IMAGES - 3), f"{whole_read:.1f} rows and {read:.1f}"
    assert finish < whole_finish - 2 * (IMAGES - 3), f"{whole_finish:.1f} rows and {finish:.1f}"


def test_a_row_that_changed_before_it_is_read_again_is_quarantined_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.stages.read, "HELD_BYTES", 3 * A_ROW)
    made = job(tmp_path / "job", photos)
    (entry,) = pending_shards(made.ledger)
    worker = StandInWorker(made.context, "cpu", 1)
    worker.set_up()
    rows, parts = read_shard(made.context, entry)
    (photos / "09.png").unlink()
    receipt = finish_shard(made.context, entry, rows, *(worker.generate(part)[0] for part in parts))
    assert receipt.counts == {"kept": 2 * (IMAGES - 1), "rejected": 0, "quarantined": 2}
    assert receipt.example.startswith("09.png:0/0: ")
    assert "does not exist any more" in receipt.example
