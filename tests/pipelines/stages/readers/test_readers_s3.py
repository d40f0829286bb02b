"""Readers on a real S3 server: listing, ranges, paths in tables, and faults of the store."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from jointdit.errors import InputError
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.records import BadRow, Row
from pipelines.spec.job import InputSpec
from pipelines.stages.readers import check_columns, count_rows, list_files, opening, read_rows
from pipelines.stages.readers.text_lines import line_offsets
from pipelines.store.errors import TransientError

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    """A bucket with images, tables about them, and an archive of them."""
    uri: str = s3.make_bucket()
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)
    for name in ("photos/a.png", "photos/deep/b.png", "photos/c.txt"):
        fs.pipe_file(f"{uri}/{name}", png())
    fs.pipe_file(f"{uri}/empty/zero.png", b"")
    lines = [{"image": "../photos/a.png"}, {"image": "../photos/gone.png"}, {"image": f"{uri}/photos/deep/b.png"}]
    lines.append({"image": "../../other/a.png"})
    fs.pipe_file(f"{uri}/tables/rows.jsonl", "\n".join(json.dumps(line) for line in lines).encode())
    table = pa.table({"id": [f"r{n}" for n in range(50)], "image": [png()] * 50, "prompt": ["p"] * 50})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=20)
    fs.pipe_file(f"{uri}/parquet/rows.parquet", sink.getvalue())
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number in range(5):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(png())
            archive.addfile(member, io.BytesIO(png()))
    fs.pipe_file(f"{uri}/tar/rows.tar", sink.getvalue())
    fs.pipe_file(f"{uri}/text/prompts.txt", b"".join(b"prompt %d\n" % n for n in range(3000)))
    return uri


def read(uri: str, task: str, start: int = 0, stop: int | None = None) -> list[Row | BadRow]:
    spec_input = InputSpec(uri=uri)
    files = list_files(spec_input, task)
    check_columns(files, spec_input, task)
    assert find_duplicate_ids(files, spec_input) == []
    rows: list[Row | BadRow] = []
    for file in files:
        rows += read_rows(
            file, [range(start, count_rows(file, spec_input) if stop is None else stop)], spec_input, task
        )
    return rows


def test_a_prefix_is_a_folder_of_images(bucket: str) -> None:
    rows = read(f"{bucket}/photos", "depth")
    assert [row.id for row in rows] == ["a.png:0", "deep/b.png:0"]
    assert [row.uri for row in rows] == [f"{bucket}/photos/a.png", f"{bucket}/photos/deep/b.png"]
    assert all(isinstance(row, Row) and (row.rgb == IMAGE).all() for row in rows)


def test_a_prefix_of_many_objects_is_listed_page_by_page(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs describes each object in about a kilobyte; only what a plan needs of it is kept."""
    uri, count = s3.make_bucket(), 1000
    call = s3fs.S3FileSystem.call_s3
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", lambda *method, **query: call(*method, **query, MaxKeys=99))
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)
    fs.pipe({f"{uri}/photos/{n % 7}/{n:04d}.png": b"x" for n in range(count)})
    fs.pipe_file(f"{uri}/photos-of-others/a.png", b"x")
    spec_input = InputSpec(uri=f"{uri}/photos")
    list_files(spec_input, "depth")
    tracemalloc.start()
    files = list_files(spec_input, "depth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [file.relative_path for file in files] == sorted(f"{n % 7}/{n:04d}.png" for n in range(count))
    assert {file.uri.removesuffix(file.relative_path) for file in files} == {f"{uri}/photos/"}
    assert len({file.etag for file in files}) == 1
    assert {file.size_bytes for file in files} == {1}
    assert peak / count < 1100, f"{peak / count:.0f} bytes per object"


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("photos/*.png", ["a.png"]),
        ("photos/?.*", ["a.png"]),
        ("photos/[ab]*", ["a.png"]),
        ("photos/*/*.png", ["deep/b.png"]),
        ("*/*.png", ["empty/zero.png", "photos/a.png"]),
        ("photos/**", ["a.png", "deep/b.png"]),
        ("pho*/a.png", ["photos/a.png"]),
    ],
)
def test_globs_match_as_on_a_disk(glob: str, expected: list[str], bucket: str) -> None:
    assert [file.relative_path for file in list_files(InputSpec(uri=f"{bucket}/{glob}"), "depth")] == expected


def test_paths_in_tables_are_found_beside_them_and_stay_in_the_bucket(bucket: str) -> None:
    rows = read(f"{bucket}/tables/*.jsonl", "depth")
    assert [isinstance(row, Row) for row in rows] == [True, False, True, False]
    assert isinstance(rows[1], BadRow)
    assert "gone.png does not exist" in rows[1].error
    assert isinstance(rows[3], BadRow)
    assert "outside the bucket" in rows[3].error


def test_an_empty_object_is_a_bad_row(bucket: str) -> None:
    """S3 answers any range of an empty object with an error of its own."""
    (row,) = read(f"{bucket}/empty", "depth")
    assert isinstance(row, BadRow)
    assert row.error == "image has zero bytes: copy it again."


def test_an_object_above_the_limit_is_a_bad_row(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_FILE_BYTES", len(png()) - 1)
    rows = read(f"{bucket}/photos", "depth")
    assert all(isinstance(row, BadRow) and "the limit of one image or map" in row.error for row in rows)


@pytest.mark.parametrize(
    ("name", "task", "start", "stop"),
    [("parquet/*.parquet", "depth", 15, 45), ("tar", "depth", 2, 5), ("text/prompts.txt", "joint", 2000, 2500)],
)
def test_ranges_are_read_by_number(bucket: str, name: str, task: str, start: int, stop: int) -> None:
    rows = read(f"{bucket}/{name}", task, start, stop)
    assert [row.position for row in rows] == list(range(start, stop))
    assert all(isinstance(row, Row) for row in rows)
    if task == "joint":
        assert [row.prompt for row in rows if isinstance(row, Row)] == [f"prompt {n}" for n in range(start, stop)]


def test_what_is_not_there_is_one_sentence(bucket: str) -> None:
    for uri in (f"{bucket}/nothing", f"{bucket}/photos/*.jsonl", "s3://no-such-bucket-here/prompts.txt"):
        with pytest.raises(InputError, match=r"input\.uri s3://"):
            read(uri, "depth")


def test_a_changed_object_is_seen_by_its_etag(bucket: str, s3: Any) -> None:
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)
    fs.pipe_file(f"{bucket}/changing/prompts.txt", b"one\ntwo\n")
    spec_input = InputSpec(uri=f"{bucket}/changing/prompts.txt")
    (file,) = list_files(spec_input, "joint")
    fs.pipe_file(f"{bucket}/changing/prompts.txt", b"one\ntwo\nthree\n")
    rows = list(read_rows(file, [range(2)], spec_input, "joint"))
    assert all(isinstance(row, BadRow) and "has changed" in row.error for row in rows)
    (changed,) = list_files(spec_input, "joint")
    assert changed.etag != file.etag
    assert count_rows(changed, spec_input) == 3


def test_a_store_that_does_not_answer_is_no_bad_row(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are quarantined for what they are, never for a fault that passes."""
    spec_input = InputSpec(uri=f"{bucket}/text/prompts.txt")
    (file,) = list_files(spec_input, "joint")
    line_offsets.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TransientError):
        list(read_rows(file, [range(2)], spec_input, "joint"))
