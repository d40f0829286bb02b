"""Ambiguous encodings, quotes, keys and headers are read as intended or refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jointdit.errors import InputError
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.records import BadRow, Row
from pipelines.spec.job import Columns, InputSpec
from pipelines.stages.readers import check_columns, count_rows, csv_records, list_files, read_rows

PROMPTS = ["a red cube", "ein Würfel aus Holz", "木の立方体が一つ", "a cube 🙂"]


def read(path: Path, **fields: Any) -> list[str]:
    """The prompt of each row, or "!" and what is wrong with it."""
    spec_input = InputSpec(uri=str(path), **fields)
    files = list_files(spec_input, "joint")
    check_columns(files, spec_input, "joint")
    counts = [count_rows(file, spec_input) for file in files]
    assert find_duplicate_ids(files, spec_input) == []
    rows = [row for f, n in zip(files, counts, strict=True) for row in read_rows(f, [range(n)], spec_input, "joint")]
    return [f"!{row.error}" if isinstance(row, BadRow) else str(row.prompt) for row in rows]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def text_of(kind: str, prompts: list[str]) -> str:
    if kind == "jsonl":
        return "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
    return "".join(f"{line}\n" for line in (["prompt"] if kind == "csv" else []) + prompts)


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf_16_and_32_are_refused_by_name(name: str, encoding: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, text_of(name.split(".")[1], PROMPTS).encode(encoding))
    with pytest.raises(InputError, match=rf"UTF-{encoding[4:6]}.* text: write it again as UTF-8: repair the file"):
        read(path)


def test_marks_of_other_encodings_without_european_text_are_refused(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-32"):
        path = write(tmp_path / "a.txt", "木の立方体\n丸い石\n".encode(encoding))
        with pytest.raises(InputError, match=encoding.upper()):
            read(path)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_utf_8_with_marks_is_read_without_them(kind: str, tmp_path: Path) -> None:
    data = text_of(kind, PROMPTS).encode("utf-8-sig")
    assert read(write(tmp_path / f"a.{kind}", data)) == PROMPTS
    if kind != "csv":  # files that were put together
        assert read(write(tmp_path / f"a.{kind}", data + data)) == PROMPTS * 2


def test_a_mark_in_an_archive_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    members = {"0.txt": "a red cube".encode("utf-8-sig"), "1.json": '{"prompt": "a red cube"}'.encode("utf-8-sig")}
    assert read(write_tar(tmp_path / "a.tar", members)) == ["a red cube"] * 2


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_no_prompt_and_no_id_with_a_nul_is_taken_in_any_format(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    bad = "a\0cube"
    (tmp_path / "in" / "a.txt").write_bytes(b"fine\na\0cube\nfine\n")
    (tmp_path / "in" / "b.jsonl").write_text(json.dumps({"prompt": "fine"}) + "\n" + json.dumps({"prompt": bad}))
    (tmp_path / "in" / "c.csv").write_text(f"prompt\nfine\n{bad}\n")
    pq.write_table(pa.table({"prompt": ["fine", bad]}), tmp_path / "in" / "d.parquet")
    write_tar(tmp_path / "in" / "e.tar", {"0.txt": b"fine", "1.txt": bad.encode(), "2.txt": "ab".encode("utf-16-le")})
    found = read(tmp_path / "in")
    assert all("\0" not in each for each in found)
    assert [each == "fine" for each in found] == [True, False, True, *[True, False] * 4, False]
    assert all("NUL" in each for each in found if each != "fine")
    table = write(tmp_path / "ids.jsonl", json.dumps({"id": "a\0", "prompt": "p"}).encode())
    assert "NUL" in read(table)[0]


def test_a_file_of_carriage_returns_is_no_single_prompt(tmp_path: Path) -> None:
    (only,) = read(write(tmp_path / "a.txt", b"one\rtwo\rthree\r"))
    assert only.startswith("!line has carriage returns inside")
    assert read(write(tmp_path / "a.txt", b"one\r\ntwo\r\n")) == ["one", "two"]
    with pytest.raises(InputError, match="carriage returns inside: end each line with a line feed"):
        read(write(tmp_path / "a.csv", b"prompt\rone\rtwo\r"))


# --- csv ------------------------------------------------------------------------------------------------------------


def test_an_unclosed_quote_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'prompt,note\na,1\nb,"open\nc,3\nd,4\n')
    with pytest.raises(InputError, match=r"a quote that is opened in line 3 or soon after is never closed"):
        read(path)


def test_a_quote_that_is_closed_by_the_next_one_spoils_its_record_alone(tmp_path: Path) -> None:
    """Lenient parsers make one record of both, with the columns of the second."""
    path = write(tmp_path / "a.csv", b'note,prompt\n1,"open\n2,"fine"\n3,good\n4,"a ""quoted"" word"\n5,say "hi"\n')
    bad, *good = read(path)
    assert bad.startswith("!record is not valid CSV")
    assert "in a record of 2 lines" in bad
    assert good == ["good", 'a "quoted" word', 'say "hi"']


def test_a_quote_that_is_unclosed_for_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "MAX_LINE_BYTES", 1000)
    rows = b"".join(b"%d,prompt\n" % number for number in range(200))
    for data in (b'note,prompt\n0,"open\n' + rows, b'note,prompt\n0,"open\n' + b"x" * 2000 + b"\n" + rows):
        with pytest.raises(InputError, match="is opened in line 2 or soon after and not closed within"):
            read(write(tmp_path / f"{len(data)}.csv", data))


def test_a_field_above_the_limit_of_the_csv_module_is_read(tmp_path: Path) -> None:
    """131,072 characters by default: an error in the middle of a field would make records of the rest of it."""
    note = "a,b\n" * 50_000
    path = write(tmp_path / "a.csv", f'note,prompt\n"{note}",good\n1,last\n'.encode())
    assert read(path) == ["good", "last"]
    assert csv.field_size_limit() >= 1 << 24


def test_headers_that_name_a_column_twice_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"prompt,prompt\none,two\n")
    with pytest.raises(InputError, match=r"has 2 columns named 'prompt'"):
        read(path)
    path = write(tmp_path / "a.csv", b"id,id,prompt\n1,2,one\n")
    with pytest.raises(InputError, match=r"has 2 columns named 'id'"):
        read(path)
    assert read(write(tmp_path / "a.csv", b"prompt,,\none,,\n")) == ["one"]  # as spreadsheets write empty columns


def test_records_of_other_lengths_are_bad_alone(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.csv", b"note,prompt\n1\n2,two\n3,three,\n,,,\n"))
    assert [each[:1] for each in found] == ["!", "t", "!", "!"]


# --- json -----------------------------------------------------------------------------------------------------------


def test_an_object_with_one_key_twice_is_bad_alone(tmp_path: Path) -> None:
    lines = ['{"prompt": "a", "prompt": "b"}', '{"prompt": "c", "more": {"x": 1, "x": 2}}', '{"prompt": "d"}']
    first, second, third = read(write(tmp_path / "a.jsonl", "\n".join(lines).encode()))
    assert first == "!line holds an object in which the key 'prompt' is there twice: keep one of them."
    assert "the key 'x' is there twice" in second
    assert third == "d"
    members = {"0.json": lines[0].encode(), "1.json": lines[2].encode()}
    first, second = read(write_tar(tmp_path / "b.tar", members), columns=Columns(prompt="prompt"))
    assert first == "!member json holds an object in which the key 'prompt' is there twice: keep one of them."
    assert second == "d"


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "1e400", "1.0", "true", "[]", "{}", '"\\ud800"', '""', '"\\u0000"']
)
def test_ids_that_are_neither_text_nor_whole_numbers_are_bad_alone(value: str, tmp_path: Path) -> None:
    data = f'{{"id": {value}, "prompt": "a"}}\n{{"id": 12345678901234567890123, "prompt": "b"}}\n'
    bad, good = read(write(tmp_path / "a.jsonl", data.encode()))
    assert bad.startswith("!id ")
    assert good == "b"


def test_rows_keep_their_places_after_bad_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "prompt": "b"}\n{"prompt": "c"}\n')
    spec_input = InputSpec(uri=str(tmp_path / "a.jsonl"))
    (file,) = list_files(spec_input, "joint")
    (row,) = read_rows(file, [range(1, 2)], spec_input, "joint")
    assert isinstance(row, Row)
    assert (row.id, row.prompt) == ("a.jsonl:1", "c")
