"""Parquet of every type: the right rows or a clear error, one row at a time."""

from __future__ import annotations

import datetime
import decimal
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jointdit.errors import InputError
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.records import BadRow, Row
from pipelines.spec.job import DepthMaps, InputSpec
from pipelines.stages.readers import check_columns, count_rows, list_files, parquet_rows, read_rows


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def read(table: pa.Table, folder: Path, task: str = "joint", **fields: Any) -> list[Row | BadRow]:
    path = folder / "a.parquet"
    pq.write_table(table, path)
    spec_input = InputSpec(uri=str(path), **fields)
    (file,) = list_files(spec_input, task)
    check_columns([file], spec_input, task)
    count = count_rows(file, spec_input)
    assert find_duplicate_ids([file], spec_input) == []
    return list(read_rows(file, [range(count)], spec_input, task))


def errors(rows: list[Row | BadRow]) -> list[str]:
    return [row.error if isinstance(row, BadRow) else "" for row in rows]


@pytest.mark.parametrize("column", ["id", "prompt"])
def test_two_columns_of_one_name_are_refused(column: str, tmp_path: Path) -> None:
    names = ["id", "prompt", column]
    table = pa.Table.from_arrays([pa.array(["1", "2"]), pa.array(["a", "b"]), pa.array(["c", "d"])], names=names)
    with pytest.raises(InputError, match=rf"has 2 columns named '{column}'"):
        read(table, tmp_path)


def test_two_columns_of_one_name_that_nobody_reads_are_no_fault(tmp_path: Path) -> None:
    arrays = [pa.array(["a"]), pa.array([1]), pa.array(["x"])]
    (row,) = read(pa.Table.from_arrays(arrays, names=["prompt", "other", "other"]), tmp_path)
    assert isinstance(row, Row)
    assert row.prompt == "a"


@pytest.mark.parametrize("twice", ["bytes", "path"])
def test_a_struct_with_two_fields_of_one_name_is_bad_rows(twice: str, tmp_path: Path) -> None:
    images = pa.StructArray.from_arrays([pa.array([png()] * 2), pa.array([png()] * 2)], names=[twice, twice])
    rows = read(pa.table({"image": images}), tmp_path, "depth")
    assert errors(rows) == [f"column image is a struct with 2 fields named {twice!r}."] * 2


def test_other_fields_of_a_struct_are_not_looked_at(tmp_path: Path) -> None:
    """A time that Python cannot hold says nothing about the image beside it."""
    arrays = [pa.array([png()]), pa.array([None], pa.string()), pa.array([2**62], pa.timestamp("us")), pa.array([1])]
    images = pa.StructArray.from_arrays([*arrays, pa.array([2])], names=["bytes", "path", "taken", "x", "x"])
    (row,) = read(pa.table({"image": images}), tmp_path, "depth")
    assert isinstance(row, Row)


FAR = 2**62
NO_IDS: dict[str, pa.Array] = {
    "time after the year 9999": pa.array([FAR], pa.timestamp("us")),
    "time before the year 1": pa.array([-FAR], pa.timestamp("us")),
    "time of a zone that nobody knows": pa.array([1], pa.timestamp("us", "Nowhere/Here")),
    "time": pa.array([1], pa.timestamp("ns")),
    "date": pa.array([2**30], pa.date32()),
    "duration": pa.array([FAR], pa.duration("ms")),
    "time of day": pa.array([1], pa.time64("ns")),
    "decimal": pa.array([decimal.Decimal("1.50")]),
    "wide decimal": pa.array([decimal.Decimal("9" * 60)], pa.decimal256(76, 0)),
    "float": pa.array([1.5]),
    "not a number": pa.array([float("nan")]),
    "half": pa.array(np.array([1.5], np.float16)),
    "bool": pa.array([True]),
    "bytes": pa.array([b"1"]),
    "fixed bytes": pa.array([b"1234"], pa.binary(4)),
    "null": pa.nulls(1),
    "list": pa.array([["a"]]),
    "list of far times": pa.array([[FAR]], pa.list_(pa.timestamp("us"))),
    "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"a": 1}]),
    "dictionary of floats": pa.array([1.5]).dictionary_encode(),
    "uuid": pa.array([b"0123456789abcdef"], pa.uuid()),
    "empty text": pa.array([" "]),
    "text that is no UTF-8": pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    ),
}
IDS: dict[str, tuple[pa.Array, str]] = {
    "text": (pa.array(["x"]), "x"),
    "large text": (pa.array(["x"], pa.large_string()), "x"),
    "view of text": (pa.array(["x"], pa.string_view()), "x"),
    "dictionary of text": (pa.array(["x"]).dictionary_encode(), "x"),
    "whole number": (pa.array([7], pa.int8()), "7"),
    "large whole number": (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
    "dictionary of whole numbers": (pa.array([7]).dictionary_encode(), "7"),
    "json": (pa.array(['"x"'], pa.json_()), '"x"'),
}


@pytest.mark.parametrize("kind", NO_IDS)
def test_ids_and_prompts_of_types_that_are_none_are_bad_rows(kind: str, tmp_path: Path) -> None:
    for column in ("id", "prompt"):
        other = "prompt" if column == "id" else "id"
        (error,) = errors(read(pa.table({column: NO_IDS[kind], other: ["x"]}), tmp_path))
        assert error.startswith((f"{column} ", f"column {column} ")), error
        assert error.endswith(".")
        assert error.isprintable()


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_type_of_text_and_whole_number_are_read(kind: str, tmp_path: Path) -> None:
    array, expected = IDS[kind]
    (row,) = read(pa.table({"id": array, "prompt": ["p"]}), tmp_path)
    assert isinstance(row, Row)
    assert row.id == expected


def test_one_far_time_is_one_bad_row(tmp_path: Path) -> None:
    near = datetime.datetime(2020, 1, 1)
    images = pa.array([[near], [near], [near]], pa.list_(pa.timestamp("us")))
    values = pa.array([0, FAR, 0], pa.int64()).cast(pa.timestamp("us"))
    images = pa.ListArray.from_arrays(images.offsets, values)
    found = errors(read(pa.table({"image": images}), tmp_path, "depth"))
    assert found[0] == found[2] == "image is a list of numbers: give encoded bytes or a path."
    assert "timestamp[us]" in found[1]


@pytest.mark.parametrize("kind", ["dictionary", "view", "struct of views", "large"])
def test_images_of_every_type_of_bytes_are_read(kind: str, tmp_path: Path) -> None:
    plain = pa.array([png(), png()])
    images = {
        "dictionary": plain.dictionary_encode(),
        "view": plain.cast(pa.binary_view()),
        "struct of views": pa.StructArray.from_arrays([plain.cast(pa.binary_view())], names=["bytes"]),
        "large": plain.cast(pa.large_binary()),
    }[kind]
    assert errors(read(pa.table({"image": images}), tmp_path, "depth")) == ["", ""]


def test_depth_lists_of_every_type_of_list_are_read(tmp_path: Path) -> None:
    maps = pa.array([[[1.0, 2.0], [3.0, 4.0]]])
    kinds = [pa.list_(pa.list_(pa.float64(), 2), 2), pa.large_list(pa.large_list(pa.float32()))]
    for kind in kinds:
        table = pa.table({"prompt": ["p"], "depth": pc.cast(maps, kind)})
        (row,) = read(table, tmp_path, "depth-to-image", depth=DepthMaps(kind="metric"))
        assert isinstance(row, Row), row
        assert row.depth is not None
        assert row.depth.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_want_of_memory_is_no_damage_but_claims_beyond_the_node_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are not quarantined for the memory that a neighbour took."""
    table = pa.table({"prompt": ["a", "b"]})
    assert errors(read(table, tmp_path)) == ["", ""]

    def fails(claimed: str) -> Any:
        raise pa.ArrowMemoryError(f"malloc of size {claimed} failed")

    monkeypatch.setattr(parquet_rows, "_raw_row", lambda *_: fails("4096"))
    with pytest.raises(MemoryError):
        read(table, tmp_path)
    monkeypatch.setattr(parquet_rows, "_raw_row", lambda *_: fails(str(2**62)))
    assert all("row group 0 is damaged (malloc of size" in error for error in errors(read(table, tmp_path)))
