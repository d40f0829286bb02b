"""Weights in an object store: listing, and resumable downloads in blocks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from jointdit.errors import ModelError, StoreError
from pipelines.model.weights.selection import CARD
from pipelines.model.weights.terms import Terms, terms_of_readme
from pipelines.model.weights.verify import PinnedFile, digest_of_etag
from pipelines.spec.weights_address import WeightsAddress
from pipelines.store.explain import explained
from pipelines.store.storage import ObjectInfo, Storage

BLOCK_BYTES = 1 << 26  # per request


def storage_of(address: WeightsAddress) -> Storage:
    """Return the storage of the address's folder, or of the folder of its single file."""
    return Storage(address.location.rpartition("/")[0] if address.is_file else address.location)


def list_objects(label: str, address: WeightsAddress) -> dict[str, ObjectInfo]:
    """List the objects of the folder, or the single file, by name. Raises ModelError if there are none."""
    storage = storage_of(address)
    if address.is_file:
        name = address.location.rpartition("/")[2]
        try:
            with explained(storage.uri, name, at_start=True):
                return {name: storage.info(name)}
        except FileNotFoundError:
            raise ModelError(f"{label}: the object does not exist: correct the address.") from None
    with explained(storage.uri, at_start=True):
        objects = {each.path: each for each in storage.list()}
    if not objects:
        raise ModelError(f"{label}: no object exists under this address: correct it.")
    return objects


def find_beside(address: WeightsAddress, name: str) -> dict[str, ObjectInfo]:
    """Return an object in the folder of a single file, by its name; empty if there is none."""
    storage = storage_of(address)
    try:
        with explained(storage.uri, name, at_start=True):
            return {name: storage.info(name)}
    except FileNotFoundError:
        return {}


def pinned(address: WeightsAddress, objects: Iterable[ObjectInfo]) -> tuple[PinnedFile, ...]:
    """Return the objects with the digests that their ETags give."""
    storage = storage_of(address)
    files = []
    for each in objects:
        part = _first_part(storage, each.path) if "-" in each.etag else None
        files.append(PinnedFile(each.path, each.size, digest_of_etag(each.etag, part)))
    return tuple(files)


def read_terms(address: WeightsAddress) -> Terms:
    """Read the terms from the model card in the folder; empty if there is none."""
    try:
        data = storage_of(address).read_bytes(CARD)
    except (FileNotFoundError, StoreError):
        return Terms()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CARD
        path.write_bytes(data)
        return terms_of_readme(path)


def download_file(label: str, storage: Storage, file: PinnedFile, target: Path) -> int:
    """Download an object to a file, or resume an earlier attempt; returns the number of downloaded bytes.

    Raises:
        ModelError: the object has changed since it was pinned.
        TransientError, StoreError: it cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    start = target.stat().st_size if target.exists() else 0
    if start > file.size:
        start = 0
    _check_unchanged(label, storage, file)
    with target.open("r+b" if start else "wb") as output:
        output.truncate(start)
        output.seek(start)
        for first in range(start, file.size, BLOCK_BYTES):
            block = read_range(storage, file.name, first, min(first + BLOCK_BYTES, file.size))
            if not block:
                break  # the object is shorter than it was
            output.write(block)
        output.flush()
        os.fsync(output.fileno())
    _check_unchanged(label, storage, file)  # so that the file never mixes blocks of two objects
    return file.size - start


def read_range(storage: Storage, name: str, start: int, stop: int) -> bytes:
    """Read bytes of an object. Raises FileNotFoundError."""
    with explained(storage.uri, name):
        block: bytes = storage.fs.cat_file(storage.path(name), start=start, end=stop)
        return block


def _check_unchanged(label: str, storage: Storage, file: PinnedFile) -> None:
    try:
        current = storage.info(file.name)
    except FileNotFoundError:
        raise ModelError(f"{label}: {file.name} was deleted after it was pinned: restore it.") from None
    if current.size != file.size or current.etag != file.digest.rpartition(":")[2]:
        raise ModelError(
            f"{label}: {file.name} has changed since it was pinned: restore the pinned object, or choose another "
            "output for the new weights."
        )


def _first_part(storage: Storage, name: str) -> int | None:
    """Return the size of the first part of a multipart object on S3; None for other stores."""
    if not storage.uri.startswith("s3://"):
        return None
    bucket, _, key = storage.path(name).partition("/")
    try:
        with explained(storage.uri, name):
            answer = storage.fs.call_s3("head_object", Bucket=bucket, Key=key, PartNumber=1)
    except (StoreError, FileNotFoundError):
        return None
    return int(answer["ContentLength"]) or None
