"""Addresses and names that a store or its library would take for another object."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jointdit.errors import InputError, SpecError, StoreError
from pipelines.spec.job import InputSpec, load_spec
from pipelines.stages.readers import list_files
from pipelines.store.addresses import normalise
from pipelines.store.storage import Storage, for_input

PIECES = [
    "a",
    "b.json",
    "/",
    "//",
    ".",
    "..",
    "?versionId=1",
    "?",
    "#1",
    "%2F",
    "+",
    " ",
    "\n",
    "\0",
    "é",
    "\udcff",
    "\ud800",
    "*",
    "[",
]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://bucket/rows.jsonl?versionId=abc", "has ?versionId="),
        ("s3a://bucket/x?versionId=/out", "has ?versionId="),
        ("s3://bucket/\udcff", "is not valid UTF-8"),
        ("gs://bucket/a\0b", "has a NUL character"),
        ("/tmp/a\0b", "has a NUL character"),
        ("/tmp/\ud800", "is not valid UTF-8"),
        ("s3:///bucket/x", "has no bucket after ://"),
    ],
)
def test_an_address_that_names_no_object_is_refused_everywhere(uri: str, reason: str) -> None:
    for refuse, kind in ((normalise, ValueError), (Storage, StoreError), (for_input, InputError)):
        with pytest.raises(kind) as caught:
            refuse(uri)
        assert reason in str(caught.value)
        assert str(caught.value).isprintable()
    for section in ("input", "output"):
        spec: dict[str, Any] = {"task": "joint", "input": {"uri": "/in.txt"}, "output": {"uri": "/out"}}
        spec[section] = {"uri": uri}
        with pytest.raises(SpecError, match=section):
            load_spec(spec)


def test_local_files_may_have_any_name() -> None:
    for path in ("/in/x?versionId=3", "/in/\udcff", "/in/#1 %2F*"):
        assert normalise(path) == path


@given(st.sampled_from(["", "s3://", "gs://", "abfs://", "file://", "x://"]), NAMES)
def test_an_address_has_one_spelling(scheme: str, rest: str) -> None:
    try:
        spelt = normalise(scheme + rest)
    except ValueError:
        return
    assert normalise(spelt) == spelt


def check_round_trip(storage: Storage, name: str) -> bool:
    """A name is refused, or it names one object: what is written is listed and read by the same name."""
    try:
        storage.write_bytes(name, name.encode("utf-8", "surrogatepass"))
    except StoreError:
        with pytest.raises(StoreError) as caught:
            storage.read_bytes(name)
        assert str(caught.value).isprintable()
        return False
    assert storage.names("") == [name]
    assert [each.path for each in storage.list()] == [name]
    assert storage.read_bytes(name) == name.encode("utf-8", "surrogatepass")
    storage.delete(name)
    assert storage.list() == []
    return True


@given(NAMES)
@example("a/../../b")
def test_a_local_name_is_refused_or_names_one_file(name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        check_round_trip(Storage(f"{root}/out"), name)
        assert set(os.listdir(root)) <= {"out"}


def test_a_key_is_refused_or_names_one_object(s3: Any) -> None:
    bucket, places, written = s3.make_bucket("keys"), itertools.count(), []

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(NAMES)
    def check(name: str) -> None:
        if check_round_trip(Storage(f"{bucket}/{next(places)}"), name):
            written.append(name)

    check()
    assert len(written) > 5


def put(storage: Storage, name: str, data: bytes) -> None:
    """By a client that knows nothing of versions in names."""
    bucket, _, key = f"{storage.path('')}/{name}".partition("/")
    storage.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data)


def test_a_key_that_s3fs_takes_for_another_is_never_deleted_in_its_place(s3: Any) -> None:
    storage = Storage(s3.make_bucket("versions"))
    storage.write_bytes("data/x.parquet", b"published")
    put(storage, "data/x.parquet?versionId=3", b"foreign")
    assert [each.path for each in storage.list()] == ["data/x.parquet"]
    assert storage.names("data") == ["x.parquet"]
    assert storage.names("data", everything=True) == ["x.parquet", "x.parquet?versionId=3"]
    with pytest.raises(StoreError, match="is no name of an object"):
        storage.delete("data/x.parquet?versionId=3")
    assert storage.read_bytes("data/x.parquet") == b"published"


def test_an_output_that_its_store_lists_under_another_address_is_refused(s3: Any) -> None:
    """This server takes a//b for a/b: no commit would ever be found again."""
    bucket = s3.make_bucket("doubled")
    with pytest.raises(
        StoreError, match=r"a//out does not list what was written: give the address as the store lists it"
    ):
        Storage(f"{bucket}/a//out").probe()
    assert Storage(bucket).list() == []


def test_input_files_that_cannot_be_asked_for_are_refused(s3: Any) -> None:
    storage = Storage(s3.make_bucket("inputs"))
    storage.write_bytes("in/rows.txt", b"the right prompts")
    put(storage, "in/rows.txt?versionId=1.txt", b"other prompts")
    put(storage, "doubled/in/rows.txt", b"prompts")
    with pytest.raises(InputError, match=r"input.uri holds 's3://.*versionId=1.txt', whose name has \?versionId="):
        list_files(InputSpec(uri=storage.uri_of("in")), "joint")
    for uri, sentence in (
        ("/doubled", "write the address as the store does"),  # s3fs lists it without its first slash
        ("doubled//in", "has no file that this task reads"),
        ("doubled//*/*.txt", "has no file that this task reads"),
    ):
        with pytest.raises(InputError, match=sentence):
            list_files(InputSpec(uri=f"{storage.uri}/{uri}"), "joint")
    assert [file.relative_path for file in list_files(InputSpec(uri=storage.uri_of("doubled")), "joint")] == [
        "in/rows.txt"
    ]


def test_local_listings_keep_what_an_odd_address_means(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "rows.txt").write_text("a prompt")
    for uri in (f"{tmp_path}//in", f"{tmp_path}/in/", f"{tmp_path}/./in", f"{tmp_path}/in/*/*.txt"):
        (file,) = list_files(InputSpec(uri=uri), "joint")
        assert file.uri == str(tmp_path / "in" / "deep" / "rows.txt")
