"""Google Cloud Storage through gcsfs, on an emulator of it. It ignores ifGenerationMatch, which GCS honours.

So it is run as it is, which makes it a store that must be refused, and with that one condition added.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

from jointdit.errors import StoreError
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import read_latest
from pipelines.store.storage import AlreadyExists, Storage
from tests.local_job import job_in


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """The emulator on loopback, with a bucket; `conditional` makes it honour ifGenerationMatch=0."""
    with pytest.MonkeyPatch.context() as patch:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        found = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
        found.conditional, lock, upload = True, threading.Lock(), objects._multipart_upload

        def insert(request: Any, response: Any, storage: Any) -> None:
            with lock:
                if found.conditional and request.query.get("ifGenerationMatch") == ["0"]:
                    try:
                        storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
                    except NotFound:
                        pass
                    else:
                        response.status = HTTPStatus.PRECONDITION_FAILED
                        return
                upload(request, response, storage)

        patch.setattr(objects, "_multipart_upload", insert)
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        found.start()
        yield found
        found.stop()


def test_the_first_of_two_creates_stands_and_the_probe_sees_it(server: Any) -> None:
    server.conditional = True
    storage = Storage("gs://bucket/created")
    storage.probe()
    storage.create_bytes("commit", b"the first")
    with pytest.raises(AlreadyExists):
        storage.create_bytes("commit", b"the second")
    storage.create_bytes("commit", b"the first"), "its own bytes mean that it won"
    assert storage.read_bytes("commit") == b"the first"
    assert storage.names("") == ["commit"], "the probe left nothing"


def test_a_store_that_overwrites_is_refused(server: Any) -> None:
    server.conditional = False
    with pytest.raises(StoreError, match="overwrites objects that must be created only once"):
        Storage("gs://bucket/overwriting").probe()
    Storage("gs://bucket/overwriting", single_writer=True).probe()


def test_objects_are_listed_read_in_part_and_deleted(server: Any) -> None:
    storage = Storage("gs://bucket/objects")
    storage.write_bytes("data/a.parquet", b"0123456789")
    storage.write_bytes("data/b.parquet", b"")
    assert [(found.path, found.size) for found in storage.list("data")] == [
        ("data/a.parquet", 10),
        ("data/b.parquet", 0),
    ]
    with storage.open("data/a.parquet") as file:
        file.seek(4)
        assert file.read(3) == b"456"
    storage.delete("data/a.parquet")
    storage.delete("data/a.parquet")
    assert not storage.exists("data/a.parquet")
    assert storage.list("nothing") == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("data/a.parquet")


def test_a_bucket_that_is_missing_is_one_sentence(server: Any) -> None:
    with pytest.raises(StoreError, match=r"^gs://nowhere/out: the bucket nowhere does not exist: create it"):
        Storage("gs://nowhere/out").probe()


@pytest.mark.slow
def test_a_job_is_whole_on_it(server: Any, tmp_path) -> None:
    server.conditional = True
    job = job_in(tmp_path, ["one", "two", "three"], output={"uri": "gs://bucket/job"})
    assert job.complete().counts == {"kept": 3, "rejected": 0, "quarantined": 0}
    found = read_latest(Storage("gs://bucket/job"))
    assert found is not None
    assert found.number == 1
    assert validate("gs://bucket/job").problems == []
