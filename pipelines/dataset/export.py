"""Export the kept samples of the latest version in forms that other tools read.

    export_webdataset(uri, target)   000000.tar, ...: the members of a sample are <number>.rgb.png, .depth.png, .txt
    (the
                                     prompt), .ply, .json (all other columns), and .npy for latents
    export_hf(uri, target)           data/train-00000-of-00003.parquet, ..., pointclouds/, README.md with its figures:
                                     a folder that `load_dataset` opens and the hub shows

Source and target are folders or s3:// prefixes, and the target must be empty. Tables are read and written one at a
time, and a tar is written when it is full. `export.json` is written last: without it an export is incomplete.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jointdit.errors import PermanentError, StoreError
from jointdit.geometry.points import PointCloud
from pipelines.dataset import card
from pipelines.ledger.entries import sha256
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.segments import VersionFile
from pipelines.ledger.versions import Version, require_latest
from pipelines.stages.sinks.latents import ROW_COUNTS
from pipelines.stages.sinks.parquet import IMAGE, POINT_COLUMNS, image_bytes
from pipelines.stages.sinks.ply import ply_bytes
from pipelines.store.addresses import is_inside
from pipelines.store.storage import Storage

TAR_BYTES = 256_000_000  # a tar is closed at this size; readers of the format expect some hundreds of megabytes
BATCH_ROWS = 16
Record = Mapping[str, tuple[pa.DataType, Any]]  # column -> (type, value)


@dataclass(frozen=True)
class Export:
    """The content of export.json."""

    kind: str  # webdataset | hf
    source: str
    version: int
    samples: int
    files: int  # number of tars or tables
    bytes: int  # size of the tars or tables


def export_webdataset(uri: str, target: str) -> Export:
    """Write the kept samples of the latest version as tars into an empty folder or prefix.

    Raises:
        StoreError: there is no job, the target is not empty, or a point cloud is missing.
        PermanentError: no version is published.
    """
    storage, version, out = _open(uri, target)
    number, samples, size = 0, 0, 0
    buffer = _Tar()
    for record in _records(storage, version):
        for suffix, data in _members(storage, record):
            buffer.add(f"{samples:09d}.{suffix}", data)
        samples += 1
        if buffer.size >= TAR_BYTES:
            size += buffer.write(out, f"{number:06d}.tar")
            number, buffer = number + 1, _Tar()
    if buffer.size or not number:
        size += buffer.write(out, f"{number:06d}.tar")
        number += 1
    return _finish(out, Export("webdataset", storage.uri, version.number, samples, number, size))


def export_hf(uri: str, target: str) -> Export:
    """Copy the latest version's kept tables and their point clouds into an empty folder or prefix, with a card.

    Raises:
        StoreError: there is no job, the target is not empty, or a file is missing or not what the version says.
        PermanentError: no version is published.
    """
    storage, version, out = _open(uri, target)
    kept = [file for file in version.iter_files() if file.outcome == "kept"]
    copies: list[VersionFile] = []
    for number, file in enumerate(kept):
        data = _read(storage, file.path)
        if sha256(data) != file.sha256:
            raise StoreError(f"{storage.uri}/{file.path} is not what version {version.number} says: run validate.")
        path = f"data/train-{number:05d}-of-{len(kept):05d}.parquet"
        for cloud in _pointclouds(data):
            out.write_bytes(cloud, _read(storage, cloud))
        out.write_bytes(path, data)
        copies.append(replace(file, path=path))
    card.write(out, Ledger(storage).read_job(), version.with_files(copies), has_gallery=False)
    samples, size = sum(file.rows for file in copies), sum(file.bytes for file in copies)
    return _finish(out, Export("hf", storage.uri, version.number, samples, len(copies), size))


def _open(uri: str, target: str) -> tuple[Storage, Version, Storage]:
    storage, out = Storage(uri), Storage(target)
    Ledger(storage).read_job()
    version = require_latest(storage)
    if is_inside(out.uri, storage.uri) or is_inside(storage.uri, out.uri):
        raise PermanentError(f"{out.uri} overlaps the dataset {storage.uri}: export to a place beside it.")
    if any(True for _ in out.list()):
        raise StoreError(f"{out.uri} is not empty: export to a new folder, or remove its content.")
    return storage, version, out


def _finish(out: Storage, export: Export) -> Export:
    out.write_bytes("export.json", (json.dumps(asdict(export), indent=2) + "\n").encode())
    return export


def _records(storage: Storage, version: Version) -> Iterator[Record]:
    """Yield the kept rows in the order of the plan."""
    for path in version.files_of("kept"):
        try:
            with storage.open(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, use_threads=False):
                    kinds = {field.name: field.type for field in batch.schema}
                    for row in batch.to_pylist():
                        yield {name: (kinds[name], value) for name, value in row.items()}
        except FileNotFoundError:
            raise _missing(storage, path) from None


def _members(storage: Storage, record: Record) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, content) of the members of a sample. The JSON with all other columns comes last."""
    values = {name: value for name, (_, value) in record.items()}
    others: dict[str, Any] = {}
    for name, (kind, value) in record.items():
        if kind == IMAGE:
            if (image := image_bytes(value)) is not None:
                yield f"{name}.{_format(image)}", image
            elif value is not None:
                others[f"{name}_path"] = value["path"]
        elif pa.types.is_binary(kind):
            yield f"{name}.npy", _npy(value, values.get(ROW_COUNTS.get(name, "")))
        elif name not in POINT_COLUMNS:
            others[name] = value
    if values.get("prompt") is not None:
        yield "txt", values["prompt"].encode("utf-8", "replace")
    if values.get("pointcloud") is not None:
        yield "ply", _read(storage, values["pointcloud"])
    elif values.get("points") is not None:
        yield "ply", ply_bytes(_cloud(values))
    yield "json", json.dumps(others, ensure_ascii=False).encode("utf-8", "replace")


def _cloud(values: Mapping[str, Any]) -> PointCloud:
    """Return the point cloud that a row stores in columns."""
    extra = {name: values.get(name) for name in ("normals", "confidence")}
    return PointCloud(
        np.asarray(values["points"], np.float32).reshape(-1, 3),
        np.asarray(values["colors"], np.uint8).reshape(-1, 3),
        None if extra["normals"] is None else np.asarray(extra["normals"], np.float32).reshape(-1, 3),
        None if extra["confidence"] is None else np.asarray(extra["confidence"], np.float32),
    )


def _format(data: bytes) -> str:
    """Return the file suffix of an encoded image."""
    with Image.open(io.BytesIO(data)) as image:
        name = (image.format or "bin").lower()
    return "jpg" if name == "jpeg" else name


def _npy(data: bytes, rows: int | None) -> bytes:
    """Return float16 numbers as a NumPy file of shape (rows, -1), or (n) where `rows` is None."""
    array = np.frombuffer(data, "<f2")
    buffer = io.BytesIO()
    np.save(buffer, array if rows is None else array.reshape(rows, -1))
    return buffer.getvalue()


def _pointclouds(table: bytes) -> list[str]:
    """Return the paths of the point clouds that a table names."""
    parquet = pq.ParquetFile(io.BytesIO(table))
    if "pointcloud" not in parquet.schema_arrow.names:
        return []
    return [path for path in parquet.read(["pointcloud"])["pointcloud"].to_pylist() if path is not None]


def _read(storage: Storage, path: str) -> bytes:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise _missing(storage, path) from None


def _missing(storage: Storage, path: str) -> StoreError:
    return StoreError(f"{storage.uri}/{path} is missing: run validate, which lists everything that is missing.")


class _Tar:
    """A tar in memory. Members have no owner and no time, so that equal samples give equal tars."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.GNU_FORMAT)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._buffer.tell()

    def add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def write(self, out: Storage, name: str) -> int:
        """Close the tar and write it. Returns its size in bytes."""
        self._tar.close()
        data = self._buffer.getvalue()
        out.write_bytes(name, data)
        return len(data)
