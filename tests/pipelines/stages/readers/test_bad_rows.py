"""Bad rows are bad alone, and input that is bad as a whole is refused in one sentence."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jointdit.errors import InputError
from pipelines.records import BadRow, Row
from pipelines.spec.job import Columns, InputSpec
from pipelines.stages.readers import list_files, read_rows
from tests.pipelines.stages.readers.test_readers import TABLES, picture, png, read_all, spec, write_tar, write_txt

# --- bad rows, alone ------------------------------------------------------------------------------------------------

BAD_LINES = [
    (b"not json", "not valid JSON"),
    (b"[1, 2]", "not an object"),
    (b"", "blank"),
    (b'{"prompt": ""}', "prompt is empty"),
    (b'{"prompt": "  "}', "prompt is empty"),
    (b'{"prompt": 5}', "prompt is 5: give text"),
    (b'{"prompt": null}', "prompt is missing"),
    (b'{"other": "x"}', "prompt is missing"),
    (b'{"prompt": "\\ud800"}', "not valid UTF-8"),
    (b'{"prompt": "\xff\xfe"}', "not valid UTF-8"),
    (b"[" * 100_000, "not usable JSON"),
]


def test_bad_json_lines_are_bad_alone(tmp_path: Path) -> None:
    good = b'{"prompt": "good"}'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line for bad, _ in BAD_LINES for line in (good, bad)) + b"\n" + good)
    rows = read_all(spec(path), "joint")
    assert [row.position for row in rows] == list(range(2 * len(BAD_LINES) + 1))
    for number, (_, what) in enumerate(BAD_LINES):
        assert isinstance(rows[2 * number], Row)
        bad = rows[2 * number + 1]
        assert isinstance(bad, BadRow)
        assert what in bad.error
        assert bad.id == f"rows.jsonl:{2 * number + 1}"


def test_bad_csv_records_and_text_lines_are_bad_alone(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_bytes(b"prompt,note\ngood,1\ntoo,many,values\n,2\nb\xff,3\nnul\x00,4\ngood,5\n")
    errors = [row.error if isinstance(row, BadRow) else "" for row in read_all(spec(table), "joint")]
    assert "3 values where the header names 2" in errors[1]
    assert "prompt is missing" in errors[2]
    assert "not valid UTF-8" in errors[3]
    assert errors[0] == errors[5] == ""
    assert len(errors) == 6
    lines = tmp_path / "rows.txt"
    lines.write_bytes(b"good\n\nb\xff\ngood")
    assert [isinstance(row, Row) for row in read_all(spec(lines), "joint")] == [True, False, False, True]


def test_a_damaged_page_spoils_its_row_group_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"prompt": [np.random.default_rng(number).bytes(100).hex() for number in range(90)]})
    pq.write_table(table, path, row_group_size=30, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    rows = read_all(spec(path), "joint")
    assert [row.position for row in rows] == list(range(90))
    assert [isinstance(row, Row) for row in rows] == [True] * 30 + [False] * 30 + [True] * 30
    assert isinstance(rows[40], BadRow)
    assert "row group 1 is damaged" in rows[40].error


def test_a_cut_archive_keeps_the_rows_before_the_cut(tmp_path: Path) -> None:
    path = write_tar(tmp_path)
    with tarfile.open(path) as archive:
        cut = archive.getmember("part/row-4.image.png").offset_data + 10
    path.write_bytes(path.read_bytes()[:cut])
    rows = read_all(spec(path), "depth")
    assert [isinstance(row, Row) for row in rows] == [True] * 4 + [False]
    assert isinstance(rows[4], BadRow)
    assert "archive ends inside a member" in rows[4].error


def test_paths_in_tables_that_lead_nowhere_are_bad_rows(tmp_path: Path) -> None:
    paths = ["gone.png", "s3://bucket/a.png", "http://host/a.png", ".", "x" * 5000, "a\0b", "", 5, "ok.png"]
    (tmp_path / "ok.png").write_bytes(png(picture(0)))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": value}) + "\n" for value in paths))
    rows = read_all(spec(path), "depth")
    assert [isinstance(row, Row) for row in rows] == [False] * 8 + [True]


def test_a_file_changed_or_gone_since_the_plan_gives_every_planned_row_as_bad(tmp_path: Path) -> None:
    path = write_txt(tmp_path)
    (file,) = list_files(spec(path), "joint")
    path.write_text("another file\n")
    rows = list(read_rows(file, [range(2, 5)], spec(path), "joint"))
    assert [(type(row), row.position) for row in rows] == [(BadRow, 2), (BadRow, 3), (BadRow, 4)]
    assert all(isinstance(row, BadRow) and "has changed" in row.error for row in rows)
    path.unlink()
    rows = list(read_rows(file, [range(2, 5)], spec(path), "joint"))
    assert all(isinstance(row, BadRow) and "does not exist any more" in row.error for row in rows)
    assert len(rows) == 3


# --- bad inputs as a whole: one sentence ----------------------------------------------------------------------------


def expect_sentence(spec_input: InputSpec, task: str, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        read_all(spec_input, task)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for part in parts:
        assert part in sentence


def test_addresses_without_rows_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").write_text("x")
    expect_sentence(spec(tmp_path / "gone"), "joint", "gone does not exist")
    expect_sentence(spec(tmp_path / "empty"), "joint", "no file", ".parquet")
    expect_sentence(spec(tmp_path / "*.nothing"), "joint", "no file")
    expect_sentence(spec(tmp_path / "page.html"), "depth", "of no kind", ".png")


def test_images_and_a_table_about_them_in_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(picture(0)))
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    expect_sentence(spec(tmp_path), "depth", "metadata.jsonl", "name one kind")
    write_txt(tmp_path)
    assert len(list_files(spec(tmp_path), "joint")) == 2  # two kinds of prompts are fine


@pytest.mark.parametrize("write", TABLES)
def test_a_missing_column_names_those_that_exist(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    missing = Columns(prompt="caption", image="picture", id="id")
    if write is not write_tar:  # an archive has a prompt in its member txt, and images by their extensions
        expect_sentence(spec(path, columns=missing), "joint", "'caption'", "input.columns.prompt", "prompt")
        expect_sentence(spec(path, columns=missing), "depth", "'picture'", "input.columns.image", "image, depth")
    expect_sentence(spec(path, columns=Columns(id="key")), "joint", "'key'", "input.columns.id", "id")


def test_text_has_no_id_column(tmp_path: Path) -> None:
    expect_sentence(spec(write_txt(tmp_path), columns=Columns(id="id")), "joint", "input.columns.id", "no columns")


def test_no_prompt_column_is_needed_where_the_spec_brings_the_prompt(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": [1, 2]}), tmp_path / "rows.parquet")
    rows = read_all(spec(tmp_path / "rows.parquet", prompt="a room"), "joint")
    assert [row.prompt for row in rows if isinstance(row, Row)] == ["a room", "a room"]


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.parquet", b"", "not a readable Parquet file"),
        ("a.parquet", b"PAR1 but no more", "not a readable Parquet file"),
        ("a.csv", b"", "no header"),
        ("a.tar", b"x" * 2000, "not a readable tar"),
        ("a.jsonl.gz", b"not gzip", "is damaged"),
        ("a.txt.gz", gzip.compress(b"one\ntwo\n" * 1000, mtime=0)[:-20], "is damaged"),
    ],
)
def test_damaged_files_are_one_sentence(name: str, data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    expect_sentence(spec(tmp_path / name), "joint", name, what, "take it out of input.uri")


def test_a_damaged_header_inside_an_archive_is_not_its_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path)
    with tarfile.open(path) as archive:
        offset = archive.getmember("part/row-4.image.png").offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 512] = b"\xaa" * 512
    path.write_bytes(bytes(data))
    expect_sentence(spec(path), "depth", f"byte {offset}")
