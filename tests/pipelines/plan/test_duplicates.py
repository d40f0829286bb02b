"""The search for duplicate ids: in bounded memory, and exact despite hash collisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.plan import duplicate_ids as duplicates
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.spec.job import load_spec
from pipelines.stages.readers import list_files


def found_in(folder: Path, limit: int = 5) -> list[str]:
    spec = load_spec({"task": "joint", "input": {"uri": str(folder)}, "output": {"uri": "/out"}})
    return find_duplicate_ids(list_files(spec.input, "joint"), spec.input, limit)


def write(path: Path, ids: list, **options) -> None:
    pq.write_table(pa.table({"id": ids, "prompt": ["x"] * len(ids)}), path, **options)


@pytest.fixture(params=[duplicates.IDS_AT_ONCE, 7])
def tables(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(duplicates, "IDS_AT_ONCE", request.param)
    write(tmp_path / "a.parquet", [f"row {number}" for number in range(100)], row_group_size=30)
    write(tmp_path / "b.parquet", list(range(100)), row_group_size=30)
    lines = [json.dumps({"id": f"line {number}", "prompt": "x"}) for number in range(50)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_ids_that_differ_are_no_duplicates(tables: Path) -> None:
    assert found_in(tables) == []


def test_each_duplicate_is_found_in_whatever_files_it_lies(tables: Path) -> None:
    write(tables / "d.parquet", ["row 99", "new", "row 0", "new", "17", "line 3", "row 1"], row_group_size=2)
    assert found_in(tables, limit=10) == ["row 99", "row 0", "new", "17", "line 3", "row 1"]
    assert found_in(tables, limit=2) == ["row 99", "row 0"]


def test_rows_without_a_usable_id_have_their_default_ids(tables: Path) -> None:
    ids = ["row 100", None, " ", "x" * 1001, "d.parquet:3", "row 5"]
    write(tables / "d.parquet", ids)
    assert found_in(tables) == ["d.parquet:3", "row 5"]
    write(tables / "e.parquet", ["a\0", "a\0", "e.parquet:1"])
    assert found_in(tables) == ["d.parquet:3", "row 5", "e.parquet:1"]


def test_an_id_that_occurs_three_times_is_one_example(tables: Path) -> None:
    write(tables / "d.parquet", ["new", "row 5", "new", "new", "row 6"])
    assert found_in(tables) == ["row 5", "new", "row 6"]


def test_two_ids_of_one_hash_are_no_duplicate(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "HASH", "0")
    assert found_in(tables) == []
    write(tables / "d.parquet", ["row 7"])
    assert found_in(tables) == ["row 7"]


def test_a_column_that_is_damaged_in_the_middle_is_read_as_rows_are(tables: Path) -> None:
    path = tables / "a.parquet"
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    write(tables / "d.parquet", ["row 3", "row 40", "a.parquet:40", "row 70"])
    assert found_in(tables) == ["row 3", "a.parquet:40", "row 70"]


def test_ids_whose_hashes_exceed_the_memory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MEMORY", 64 << 20)
    write(tmp_path / "a.parquet", pa.array(np.arange(3_000_000)))
    write(tmp_path / "b.parquet", ["a", "2999999", "b", "7"])
    assert found_in(tmp_path) == ["2999999", "7"]
