"""Check one object of a dataset: its bytes, schema, images and points.

Each check yields its problems as sentences. The checks trust only the job's spec and what the commit says.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from jointdit.errors import JointDiTError
from pipelines.ledger.entries import StoredObject, sha256
from pipelines.spec.job import JobSpec
from pipelines.stages.read import sample_seed
from pipelines.stages.sinks.latents import ARRAYS
from pipelines.stages.sinks.parquet import DEPTH_KIND, POINT_COLUMNS, data_schema, image_bytes
from pipelines.stages.sinks.ply import read_ply
from pipelines.store.parquet import read_parquet
from pipelines.store.safe_text import reason_of
from pipelines.store.storage import Storage

# Scores, hashes and points may change between runs of one job. All other columns may not.
CHANGING = ("quality", "phash", *POINT_COLUMNS)
MAY_REFER = ("depth", "prepare")  # tasks whose images may be stored as addresses; output.rgb may change between runs


@dataclass
class Checked:
    """The problems of one object, and how many images it holds."""

    problems: list[str] = field(default_factory=list)
    images: int = 0
    clouds: list[tuple[str, str]] = field(default_factory=list)  # (sample id, path) of point clouds that its rows name


def check_object(storage: Storage, spec: JobSpec, stored: StoredObject) -> Checked:
    """Read and check one object."""
    try:
        data = storage.read_bytes(stored.path)
    except FileNotFoundError:
        return Checked([f"{stored.path} is named by a commit and missing."])
    except JointDiTError as error:
        return Checked([f"{stored.path} cannot be read ({error})"])
    if len(data) != stored.bytes:
        return Checked([f"{stored.path} has {len(data)} bytes, its commit says {stored.bytes}."])
    if sha256(data) != stored.sha256:
        return Checked([f"{stored.path} has another SHA-256 than its commit says."])
    if stored.kind == "points":
        return Checked(list(_check_ply(stored, data)))
    return _check_table(spec, stored, data)


def _check_table(spec: JobSpec, stored: StoredObject, data: bytes) -> Checked:
    try:
        table = read_parquet(data)
    except (pa.ArrowException, OSError) as error:  # a damaged page is an OSError
        return Checked([f"{stored.path} is not a readable Parquet file ({reason_of(error)})."])
    checked = Checked()
    if table.num_rows != stored.rows:
        checked.problems.append(f"{stored.path} has {table.num_rows} rows, its commit says {stored.rows}.")
    columns = {f.name: f.type for f in table.schema}
    for field_ in data_schema(spec, stored.outcome):
        if field_.name not in CHANGING and columns.get(field_.name) != field_.type:
            kind = columns.get(field_.name, "missing")
            checked.problems.append(f"{stored.path}: column {field_.name} is {kind}, the schema says {field_.type}.")
    if checked.problems:
        return checked
    for batch in table.to_batches(max_chunksize=64):  # images of a few rows at a time
        for row in batch.to_pylist():
            checked.problems += _check_row(spec, stored, row)
            if row.get("pointcloud") is not None:
                checked.clouds.append((row["id"], row["pointcloud"]))
            checked.images += sum(image_bytes(row.get(column)) is not None for column in ("rgb", "depth"))
    return checked


def _check_row(spec: JobSpec, stored: StoredObject, row: Mapping[str, Any]) -> Iterator[str]:
    name = f"{stored.path}: sample {row['id']}"
    if stored.outcome == "quarantined":
        if not row["error"]:
            yield f"{name} is quarantined without a reason."
        return
    if spec.task == "encode":
        sizes = [len(row[column]) for column in ARRAYS]
        tokens, text_tokens = row["tokens"], row["text_tokens"]
        if sizes[0] != sizes[1] or not sizes[3] or sizes[0] % (2 * tokens) or sizes[2] % (2 * text_tokens):
            yield f"{name} has arrays of {sizes} bytes for {tokens} tokens and {text_tokens} of text."
        return
    source, _, index = str(row["id"]).rpartition("/")
    if source != row["source"] or not index.isdecimal():
        yield f"{name} says that its row is {row['source']}."
    elif row["seed"] != sample_seed(spec.seed, source, int(index)):
        yield f"{name} has seed {row['seed']}, which is not that of its id."
    if row["depth_kind"] != DEPTH_KIND:
        yield f"{name} has depth_kind {row['depth_kind']} and not {DEPTH_KIND}."
    if stored.outcome == "rejected" and not row["reasons"]:
        yield f"{name} is rejected without a reason."
    for column in ("rgb", "depth"):
        if image_bytes(row.get(column)) is not None:
            yield from _check_image(stored.path, row, column)
        elif column == "depth" or spec.task not in MAY_REFER:
            yield f"{stored.path}: {column} of sample {row['id']} is missing."
    if row.get("points") is not None and len(row["points"]) != len(row["colors"] or ()):
        yield f"{name} has {len(row['points'])} points and {len(row['colors'] or ())} colours."


def _check_image(path: str, row: Mapping[str, Any], column: str) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(row[column]["bytes"])) as image:
            image.load()
            size, mode = image.size, image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        yield f"{path}: {column} of sample {row['id']} cannot be decoded ({type(error).__name__})."
        return
    if size != (row["width"], row["height"]):
        stated = f"{row['width']} x {row['height']}"
        yield f"{path}: {column} of sample {row['id']} is {size[0]} x {size[1]}, its row says {stated}."
    if column == "depth" and not mode.startswith("I"):
        yield f"{path}: depth of sample {row['id']} has mode {mode} and not 16 bits."


def _check_ply(stored: StoredObject, data: bytes) -> Iterator[str]:
    try:
        cloud = read_ply(data)
    except ValueError as error:
        yield f"{stored.path} {error}."
        return
    if len(cloud) != stored.rows:
        yield f"{stored.path} holds {len(cloud)} points, and its commit says {stored.rows}."
    elif not np.isfinite(cloud.points).all():
        yield f"{stored.path} has points that are not finite."
