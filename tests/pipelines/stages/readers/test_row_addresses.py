"""Bad addresses in rows quarantine their row, never the job, and never block."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from botocore.exceptions import ClientError
from PIL import Image
from s3fs.errors import translate_boto_error

from jointdit.errors import InputError, StoreError
from pipelines.records import BadRow, Row
from pipelines.spec.job import DepthMaps, InputSpec
from pipelines.stages.readers import check_columns, count_rows, list_files, opening, read_rows
from pipelines.store.errors import TransientError

pytestmark = pytest.mark.timeout(30)  # a reader that waits for a pipe or a device hangs


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def read(uri: Path | str, task: str = "depth", **fields: Any) -> list[Row | BadRow]:
    spec_input = InputSpec(uri=str(uri), **fields)
    files = list_files(spec_input, task)
    check_columns(files, spec_input, task)
    return [row for file in files for row in read_rows(file, [range(count_rows(file, spec_input))], spec_input, task)]


def read_addresses(folder: Path, addresses: list[str]) -> list[Row | BadRow]:
    """Rows of a table that names these images, with a good one after each."""
    lines = [json.dumps({"image": each}) for address in addresses for each in (address, "ok.png")]
    (folder / "table.jsonl").write_text("\n".join(lines))
    return read(folder / "table.jsonl")


LOCAL = {
    "a loop of links": ("loop.png", "too many levels of symbolic links"),
    "a loop through a folder": ("loop.png/a.png", "too many levels of symbolic links"),
    "a name of 5,000 characters": ("x" * 5000 + ".png", "file name too long"),
    "a path of 5,000 characters": ("x/" * 2500 + "a.png", "file name too long"),
    "a NUL": ("ok.png\0", "is no path"),
    "half a character": ("\ud800.png", "is no path"),
    "a folder": (".", "is no file"),
    "a file taken for a folder": ("ok.png/a.png", "does not exist"),
    "a pipe": ("pipe.png", "is no file"),
    "a socket": ("socket.png", "is no file"),
    "a device": ("/dev/zero", "is no file"),
    "a device through a link": ("zero.png", "is no file"),
    "a file of /proc that waits": ("/proc/kmsg", ""),
    "a file of /proc that fails": ("/proc/self/mem", ""),
    "a file of /proc that has no size": ("/proc/self/status", "zero bytes"),
    "a host in a file address": ("file://host/data/a.png", "give an absolute path"),
    "a relative file address": ("file://ok.png", "give an absolute path"),
    "nothing in a file address": ("file://", "no address this can read"),
    "another kind of store": ("s3://bucket/a.png", "another kind of store"),
    "an address that is half one": ("s3://[bucket/a.png", "another kind of store"),
    "an unknown scheme": ("ftp://host/a.png", "no address this can read"),
    "memory": ("memory://a.png", "no address this can read"),
}


@pytest.mark.parametrize("name", LOCAL)
def test_a_bad_local_address_is_one_bad_row(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a relative file address must not find what lies here
    (tmp_path / "ok.png").write_bytes(png())
    os.symlink("loop.png", tmp_path / "loop.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    os.mkfifo(tmp_path / "pipe.png")
    address, what = LOCAL[name]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        bad, good = read_addresses(tmp_path, [address])
    assert isinstance(bad, BadRow)
    assert what in bad.error
    assert len(bad.error) < 400
    assert bad.error.isprintable()
    assert isinstance(good, Row)


def test_absolute_file_addresses_are_read(tmp_path: Path) -> None:
    (tmp_path / "ok.png").write_bytes(png())
    assert all(isinstance(row, Row) for row in read_addresses(tmp_path, [f"file://{tmp_path}/ok.png"]))


def test_what_has_no_end_is_passed_over_in_a_folder_and_refused_as_an_input(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ok.txt").write_text("a cube\n")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    os.symlink("/dev/zero", tmp_path / "in" / "zero.txt")
    os.symlink("loop.txt", tmp_path / "in" / "loop.txt")
    assert [row.id for row in read(tmp_path / "in", "joint")] == ["ok.txt:0"]
    for name in ("pipe.txt", "zero.txt"):
        with pytest.raises(InputError, match="is no regular file"):
            read(tmp_path / "in" / name, "joint")


@pytest.mark.parametrize("name", ["log.txt", "log.jsonl", "log.csv", "log.parquet", "log.tar", "log.png"])
def test_a_file_of_proc_that_waits_is_no_input(name: str, tmp_path: Path) -> None:
    """It counts as a regular file, and a read of it returns when the kernel has something to say."""
    os.symlink("/proc/kmsg", tmp_path / name)
    task = "depth" if name.endswith("png") else "joint"
    rows: list[Row | BadRow] = []
    with contextlib.suppress(InputError, StoreError):  # the latter where this user is not root
        rows = read(tmp_path / name, task)
    assert all(isinstance(row, BadRow) for row in rows)


@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
@pytest.mark.parametrize("name", ["a.txt", "a.png"])
def test_a_planned_file_that_became_something_else_is_bad_rows(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(png())
    task = "depth" if name == "a.png" else "joint"
    (file,) = list_files(spec_input := InputSpec(uri=str(path)), task)
    path.unlink()
    {"pipe": os.mkfifo, "loop": lambda path: os.symlink(path, path), "folder": os.mkdir}[kind](path)
    assert all(isinstance(row, BadRow) for row in read_rows(file, [range(2)], spec_input, task))


def test_a_pipe_beside_a_depth_map_is_no_prompt(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.txt")
    (row,) = read(tmp_path, "depth-to-image", depth=DepthMaps(kind="metric"))
    assert isinstance(row, BadRow)
    assert "prompt is missing" in row.error


# --- S3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    """A bucket whose folder `secret` answers 403, for objects that are there and for those that are not."""
    uri: str = s3.make_bucket()
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)
    for name in ("in/ok.png", "secret/a.png", "mixed/a.png", "mixed/b.png"):
        fs.pipe_file(f"{uri}/{name}", png())
    name = uri.removeprefix("s3://")
    denied = [f"arn:aws:s3:::{name}/secret/*", f"arn:aws:s3:::{name}/mixed/a.png"]
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": denied}
    fs.call_s3("put_bucket_policy", Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    return uri


def test_a_bad_s3_address_is_one_bad_row(bucket: str, s3: Any) -> None:
    addresses = {
        "s3://no-such-bucket-here/a.png": "the bucket no-such-bucket-here does not exist",
        "s3://Not_A_Bucket!/a.png": "not a valid bucket name",
        "s3://no-key-here": "cannot be read",
        f"{bucket}": "cannot be read",
        f"{bucket}/secret/a.png": "no access",
        "../secret/not-there.png": "no access",
        f"{bucket}/in": "does not exist",
        f"{bucket}/{'k' * 3000}": "",
        f"{bucket}/a\0b": "is no path",
        f"{bucket}/\ud800.png": "no address this can read",
        "/tmp/a.png": "outside the bucket",
        "file:///tmp/a.png": "another kind of store",
        "gs://bucket/a.png": "another kind of store",
        "http://host/a.png": "no address this can read",
        "s3://[bucket/a.png": "",
    }
    lines = [json.dumps({"image": each}) for address in addresses for each in (address, "ok.png")]
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)
    fs.pipe_file(f"{bucket}/in/table.jsonl", "\n".join(lines).encode())
    rows = read(f"{bucket}/in/table.jsonl")
    assert all(isinstance(row, Row) for row in rows[1::2])
    for row, (address, what) in zip(rows[::2], addresses.items(), strict=True):
        assert isinstance(row, BadRow), address
        assert what in row.error
        assert len(row.error) < 400


def test_an_image_of_a_folder_that_answers_403_is_one_bad_row(bucket: str) -> None:
    first, second = read(f"{bucket}/mixed")
    assert isinstance(first, BadRow)
    assert "no access" in first.error
    assert isinstance(second, Row)


def test_a_job_whose_own_table_answers_403_stops(bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that expire while rows are read are no property of the rows."""
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)
    fs.pipe_file(f"{bucket}/in/rows.jsonl", b'{"image": "ok.png"}\n' * 3)
    spec_input = InputSpec(uri=f"{bucket}/in/rows.jsonl")
    (file,) = list_files(spec_input, "depth")
    rows = read_rows(file, [range(3)], spec_input, "depth")
    assert isinstance(next(rows), Row)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
    with pytest.raises(StoreError, match="no access"):
        list(rows)


def test_a_store_that_is_down_is_no_bad_address(bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False)
    fs.pipe_file(f"{bucket}/in/more.jsonl", b'{"image": "ok.png"}\n' * 3)
    spec_input = InputSpec(uri=f"{bucket}/in/more.jsonl")
    (file,) = list_files(spec_input, "depth")
    rows = read_rows(file, [range(3)], spec_input, "depth")
    assert isinstance(next(rows), Row)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TransientError):
        list(rows)


@pytest.mark.parametrize(
    ("code", "status", "is_about_the_address"),
    [
        ("KeyTooLongError", 400, True),
        ("InvalidURI", 400, True),
        ("PermanentRedirect", 301, True),
        ("NotImplemented", 501, False),
        ("RequestTimeout", 400, False),
        ("OperationAborted", 409, False),
        ("TooManyRequests", 429, False),
        ("SlowDown", 503, False),
        ("InternalError", 500, False),
        ("NoSuchKey", 404, False),  # these two are explained by their own classes
        ("AccessDenied", 403, False),
    ],
)
def test_refusals_are_told_from_what_may_pass(code: str, status: int, is_about_the_address: bool) -> None:
    response: Any = {"Error": {"Code": code, "Message": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    answer = ClientError(response, "GetObject")
    assert opening._is_refusal(translate_boto_error(answer)) is is_about_the_address
