"""The Parquet files of the dataset. The Arrow schema is the contract with all readers.

    data/, rejected/   one row per sample; rejected samples also have `reasons`
    quarantine/        one row per sample that could not be made: id, input, error, traceback

`rgb` and `depth` are Hugging Face Image structs, and the schema's metadata says so: `datasets.load_dataset("parquet")`
returns decoded images. `depth` is a 16-bit PNG of relative disparity: 65535 is nearest, 0 is farthest. In a sample
whose input map had holes (`valid_fraction` in `params` below 1), 0 is a hole.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from jointdit.geometry.depth import encode_depth_png
from pipelines.ledger.entries import Outcome
from pipelines.quality import SCORES
from pipelines.quality.near_duplicate import perceptual_hash
from pipelines.records import SampleResult
from pipelines.stages.readers.images import IMAGE_SUFFIXES
from pipelines.stages.sinks import latents
from pipelines.stages.sinks.geometry import geometry_of, point_cloud, valid_pixels
from pipelines.stages.sinks.latents import ENCODED_DESCRIPTIONS, ENCODED_FIELDS, encoded_row

if TYPE_CHECKING:
    from pipelines.spec.job import JobSpec, PointsSpec

ROW_GROUP_ROWS = 100  # as the `datasets` library writes images: some 10 to 100 MB
DEPTH_KIND = "relative_disparity"
JPEG_QUALITY = 95
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
POINTS = pa.list_(pa.list_(pa.float32(), 3))
COLOURS = pa.list_(pa.list_(pa.uint8(), 3))
POINT_COLUMNS = ("points", "colors", "normals", "confidence")
REASONS = pa.field("reasons", pa.list_(pa.string()))

DATA_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("source", pa.string()),
    pa.field("prompt", pa.string()),
    pa.field("rgb", IMAGE),
    pa.field("depth", IMAGE),
    pa.field("depth_kind", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("fx", pa.float64()),
    pa.field("fy", pa.float64()),
    pa.field("cx", pa.float64()),
    pa.field("cy", pa.float64()),
    pa.field("intrinsics_source", pa.string()),
    pa.field("z_near", pa.float64()),
    pa.field("z_far", pa.float64()),
    pa.field("pointcloud", pa.string()),
    pa.field("seed", pa.int64()),
    pa.field("round", pa.int32()),
    # All scores, null where one was not computed, so that files written under other filters have one schema.
    pa.field("quality", pa.struct([(name, pa.float64()) for name in SCORES])),
    pa.field("phash", pa.string()),
    pa.field("model", pa.string()),
    pa.field("params", pa.string()),
]
DESCRIPTIONS = {
    "id": "id of the sample: `<source>/<index>`",
    "source": "id of the input row",
    "prompt": "the text the image was generated from; null for task depth",
    "rgb": "the image; null bytes and the image's address if the corpus is not copied",
    "depth": "relative disparity as 16-bit PNG: 65535 nearest, 0 farthest (or a hole of the input map)",
    "depth_kind": "always `relative_disparity`: an affine map of inverse depth, per image, without a unit",
    "width": "pixels",
    "height": "pixels",
    "fx": "focal length in pixels",
    "fy": "focal length in pixels",
    "cx": "principal point in pixels; the centre of pixel u is at u + 0.5",
    "cy": "principal point in pixels",
    "intrinsics_source": "`assumed`, `given` or `calibrated` (by a metric depth model)",
    "z_near": "depth of the nearest pixel in metres: z = 1 / (A + B d), A = 1/z_far, B = 1/z_near - 1/z_far",
    "z_far": "depth of the farthest pixel in metres",
    "pointcloud": "path of the sample's PLY file in the dataset; null if there is none, as for rejected samples",
    "seed": "seed of the sample's noise",
    "round": "round of regeneration; 0 is the first",
    "quality": "scores; null if a score was not computed",
    "phash": "64-bit perceptual hash of the image; hashes of similar images differ in few bits",
    "model": "the weights",
    "params": "JSON: task, sampling settings, source of the depth range",
    "points": "x right, y down, z forward, in metres; depth edges and holes are left out",
    "colors": "red, green and blue of each point",
    "normals": "unit vector of each point towards the camera",
    "confidence": "confidence of each point: 1 where depth is even around it, 0 where it jumps by the edge threshold",
    "reasons": "why the sample was rejected",
    "input": "address of the input file and row number",
    "error": "one sentence",
    "traceback": "empty if the sentence is sufficient",
    **ENCODED_DESCRIPTIONS,
}


def data_schema(spec: JobSpec, outcome: Outcome = "kept") -> pa.Schema:
    """Return the schema of the files of one outcome, with metadata for the `datasets` library."""
    if outcome == "quarantined":
        fields = [pa.field(name, pa.string()) for name in ("id", "input", "error", "traceback")]
    else:
        fields = list(ENCODED_FIELDS if spec.task == "encode" else DATA_FIELDS)
        fields += _point_fields(spec.output.points)
        if outcome == "rejected":
            fields.append(REASONS)
    return pa.schema(fields, metadata=features_metadata(fields))


def features_metadata(fields: Iterable[pa.Field]) -> dict[str, str]:
    """Return the schema metadata that tells the `datasets` library the features of these columns."""
    features = {field.name: _feature(field.type) for field in fields}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def encode_samples(
    results: Sequence[SampleResult],
    spec: JobSpec,
    outcome: Outcome,
    pointclouds: Mapping[str, str] | None = None,
) -> pa.Table:
    """Return a table of finished samples, in the given order. Equal input gives equal tables.

    `rgb` (H, W, 3) and `disparity` (H, W) have their final size. `sample.row` has the source's arrays if the task reads
    them. `pointclouds` maps sample ids to paths in the dataset.
    """
    schema = data_schema(spec, outcome)
    if outcome == "quarantined":
        rows = [_quarantine_row(result) for result in results]
    else:
        rows = [
            encoded_row(result, spec)
            if result.encoded is not None
            else _data_row(result, spec, (pointclouds or {}).get(result.sample.id))
            for result in results
        ]
        if outcome == "rejected":
            for row, result in zip(rows, results, strict=True):
                row[REASONS.name] = list(result.reasons)
    return pa.Table.from_pylist(rows, schema=schema)


def table_bytes(table: pa.Table) -> bytes:
    """Return a Parquet file. Equal tables give equal bytes."""
    sink = io.BytesIO()
    kinds = {field.name: field.type for field in table.schema}
    numbers = {name for name, kind in kinds.items() if pa.types.is_binary(kind)}  # arrays of latents
    incompressible = ({"rgb", "depth"} | numbers) & set(kinds)
    statistics = [name for name, kind in kinds.items() if not pa.types.is_nested(kind) and name not in numbers]
    pq.write_table(
        table,
        sink,
        row_group_size=latents.ROW_GROUP_ROWS if numbers else ROW_GROUP_ROWS,
        compression={
            path: "none" if path.split(".")[0] in incompressible else "zstd" for path in _leaves(table.schema)
        },
        use_dictionary=[name for name in statistics if name not in ("id", "seed")],
        write_statistics=statistics,
    )
    return sink.getvalue()


def encode_image(rgb: NDArray[np.uint8], image_format: str) -> bytes:
    """Encode an image as png or webp (both lossless) or jpeg (quality 95, no chroma subsampling)."""
    buffer = io.BytesIO()
    options: dict[str, dict[str, Any]] = {
        "png": {"format": "PNG"},
        "jpeg": {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0},
        "webp": {"format": "WEBP", "lossless": True},
    }
    Image.fromarray(rgb).save(buffer, **options[image_format])
    return buffer.getvalue()


def image_bytes(value: Mapping[str, Any] | None) -> bytes | None:
    """Return the encoded image of an Image struct, or None where there is none or only its address is stored."""
    return None if value is None else value["bytes"]


def _data_row(result: SampleResult, spec: JobSpec, pointcloud: str | None) -> dict[str, Any]:
    assert result.rgb is not None
    assert result.disparity is not None
    sample = result.sample
    geometry, valid, calibrate = geometry_of(result, spec), valid_pixels(result), spec.output.points.calibrate
    height, width = result.disparity.shape
    row: dict[str, Any] = {
        "id": sample.id,
        "source": sample.row.id,
        "prompt": sample.row.prompt,
        "rgb": _rgb(result, spec),
        "depth": {"bytes": encode_depth_png(result.disparity, valid), "path": None},
        "depth_kind": DEPTH_KIND,
        "width": width,
        "height": height,
        **geometry.intrinsics._asdict(),
        "intrinsics_source": geometry.intrinsics_source,
        "z_near": geometry.z_near,
        "z_far": geometry.z_far,
        "pointcloud": pointcloud,
        "seed": sample.seed,
        "round": sample.round,
        "quality": {name: result.scores.get(name) for name in SCORES},
        "phash": perceptual_hash(result.rgb),
        "model": _model_of(spec),
        "params": json.dumps(
            {
                "task": spec.task,
                "steps": spec.model.steps,
                "guidance": spec.model.guidance,
                **({"scheduler": spec.model.scheduler} if spec.model.scheduler != "euler" else {}),
                **({"rgb_refresh": spec.model.condition_refresh} if spec.model.condition_refresh != 1 else {}),
                "dtype": spec.model.dtype,
                "resize": spec.model.resize,
                "range_source": geometry.range_source,
                **({"range_by": calibrate.model} if geometry.range_source == "calibrated" and calibrate else {}),
                "valid_fraction": 1.0 if valid is None else round(float(valid.mean()), 6),
            },
            sort_keys=True,
        ),
    }
    if spec.output.points.as_columns:
        cloud = point_cloud(result, geometry, spec.output.points)
        row["points"], row["colors"] = list(cloud.points), list(cloud.colours)
        row["normals"] = None if cloud.normals is None else list(cloud.normals)
        row["confidence"] = cloud.confidence
    return row


def _point_fields(points: PointsSpec) -> list[pa.Field]:
    fields = [pa.field("points", POINTS), pa.field("colors", COLOURS)] if points.as_columns else []
    if points.as_columns and points.normals:
        fields.append(pa.field("normals", POINTS))
    if points.as_columns and points.confidence:
        fields.append(pa.field("confidence", pa.list_(pa.float32())))
    return fields


def _model_of(spec: JobSpec) -> str | None:
    if spec.task == "prepare":
        return " + ".join(spec.teachers)
    return spec.model.label


def _rgb(result: SampleResult, spec: JobSpec) -> dict[str, Any] | None:
    """Return the image struct. Task depth stores the source's bytes if they show exactly it, or only its address."""
    row = result.sample.row
    assert result.rgb is not None
    if spec.task in ("depth", "prepare"):
        if spec.output.rgb == "reference":
            # An image inside a table has no address of its own; `source` names its row.
            return {"bytes": None, "path": row.uri} if row.uri.lower().endswith(IMAGE_SUFFIXES) else None
        if row.rgb_bytes is not None and row.rgb is not None and row.rgb.shape == result.rgb.shape:
            return {"bytes": row.rgb_bytes, "path": None}
    return {"bytes": encode_image(result.rgb, spec.output.image_format), "path": None}


def _quarantine_row(result: SampleResult) -> dict[str, Any]:
    row = result.sample.row
    assert result.error, f"{result.sample.id} is quarantined without a reason"
    address = f"{row.uri}:{row.position}"
    return {"id": result.sample.id, "input": address, "error": result.error, "traceback": result.traceback}


def _feature(kind: pa.DataType) -> Any:
    """Return the `datasets` feature of an Arrow type, as that library writes it to JSON."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _feature(kind.value_type), "length": kind.list_size, "_type": "List"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": dtype_name(kind), "_type": "Value"}


def dtype_name(kind: pa.DataType) -> str:
    """Return the name that the `datasets` library uses for a primitive Arrow type."""
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the Parquet column paths of a schema."""

    def paths(name: str, kind: pa.DataType) -> list[str]:
        if pa.types.is_struct(kind):
            return [path for field in kind for path in paths(f"{name}.{field.name}", field.type)]
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            return paths(f"{name}.list.element", kind.value_type)
        return [name]

    return [path for field in schema for path in paths(field.name, field.type)]
