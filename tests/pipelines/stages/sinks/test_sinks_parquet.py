"""The dataset's Parquet files as pyarrow and `datasets` read them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jointdit.geometry.depth import decode_depth_png, disparity_from_depth, metric_depth
from pipelines.quality import SCORES, measure
from pipelines.records import Row, Sample, SampleResult
from pipelines.spec.job import JobSpec, load_spec
from pipelines.stages.sinks.geometry import geometry_of, point_cloud
from pipelines.stages.sinks.parquet import data_schema, encode_image, encode_samples, table_bytes

HEIGHT, WIDTH = 48, 64


def job(task: str = "joint", **sections: Any) -> JobSpec:
    data: dict[str, Any] = {"task": task, "input": {"uri": "in"}, "output": {"uri": "out"}}
    if task == "depth-to-image":
        data["input"]["depth"] = {"kind": "metric"}
    for name, section in sections.items():
        data.setdefault(name, {}).update(section)
    return load_spec(data)


def result(number: int, **fields: Any) -> SampleResult:
    random = np.random.default_rng(number)
    row = Row(f"row-{number}", "in/rows.txt", number, prompt=f"scene {number}, naïve “quotes”")
    made = SampleResult(
        Sample(f"row-{number}/0", row, 0, 0, seed=2**62 + number),
        rgb=random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        disparity=random.random((HEIGHT, WIDTH), dtype=np.float32),
    )
    made.scores = measure(made)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def with_row(made: SampleResult, **fields: Any) -> SampleResult:
    row = Row(**{**made.sample.row.__dict__, **fields})
    made.sample = Sample(**{**made.sample.__dict__, "row": row})
    return made


def test_the_columns_are_the_contract() -> None:
    names = data_schema(job()).names
    assert " ".join(names) == (
        "id source prompt rgb depth depth_kind width height fx fy cx cy intrinsics_source z_near z_far pointcloud "
        "seed round quality phash model params"
    )
    assert data_schema(job(), "rejected").names == [*names, "reasons"]
    assert data_schema(job(), "quarantined").names == ["id", "input", "error", "traceback"]
    with_points = job(output={"points": {"format": "parquet"}})
    assert data_schema(with_points).names == [*names, "points", "colors"]
    with_all = job(output={"points": {"format": "both", "normals": True, "confidence": True}})
    assert data_schema(with_all).names == [*names, "points", "colors", "normals", "confidence"]


@pytest.mark.parametrize("points", ["none", "parquet"])
@pytest.mark.parametrize("outcome", ["kept", "rejected", "quarantined"])
def test_the_features_are_those_the_datasets_library_derives(points: str, outcome: Any) -> None:
    import datasets

    schema = data_schema(job(output={"points": {"format": points}}), outcome)
    ours = datasets.Features.from_arrow_schema(schema)
    assert ours.arrow_schema.remove_metadata() == schema.remove_metadata()
    assert json.loads(ours.arrow_schema.metadata[b"huggingface"]) == json.loads(schema.metadata[b"huggingface"])


def test_load_dataset_shows_images_and_16_bit_depth(tmp_path: Path) -> None:
    import datasets

    results = [result(number) for number in range(3)]
    path = tmp_path / "part.parquet"
    path.write_bytes(table_bytes(encode_samples(results, job(), "kept", {"row-1/0": "pointclouds/x/1.ply"})))
    found = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == 3
    for made, row in zip(results, found, strict=True):
        np.testing.assert_array_equal(np.asarray(row["rgb"]), made.rgb)
        depth = np.asarray(row["depth"])
        assert depth.max() > 60_000  # 16 bits came through
        np.testing.assert_allclose(depth / 65535, made.disparity, atol=1 / 65535)
        assert row["seed"] == made.sample.seed
        assert row["prompt"] == made.sample.row.prompt
        assert {name: score for name, score in row["quality"].items() if score is not None} == made.scores
        assert (row["width"], row["height"]) == (WIDTH, HEIGHT)
    assert [row["pointcloud"] for row in found] == [None, "pointclouds/x/1.ply", None]


def test_equal_samples_give_equal_bytes() -> None:
    first, second = (table_bytes(encode_samples([result(1), result(2)], job(), "kept")) for _ in range(2))
    assert first == second


def test_rejected_rows_carry_their_reasons_and_quarantined_ones_their_error() -> None:
    rejected = encode_samples([result(0, reasons=["depth_range: flat"])], job(), "rejected").to_pylist()
    assert rejected[0]["reasons"] == ["depth_range: flat"]
    bad = result(1, rgb=None, disparity=None, error="image has zero bytes.", traceback="Traceback ...")
    assert encode_samples([bad], job(), "quarantined").to_pylist() == [
        {"id": "row-1/0", "input": "in/rows.txt:1", "error": "image has zero bytes.", "traceback": "Traceback ..."}
    ]
    assert pq.read_table(io.BytesIO(table_bytes(encode_samples([], job(), "rejected")))).num_rows == 0


def test_scores_that_were_not_computed_are_null() -> None:
    (row,) = encode_samples([result(0, scores={SCORES[0]: 0.5})], job(), "kept").to_pylist()
    assert row["quality"] == {SCORES[0]: 0.5, **dict.fromkeys(SCORES[1:])}


@pytest.mark.parametrize(("image_format", "exact"), [("png", True), ("webp", True), ("jpeg", False)])
def test_images_are_encoded_as_asked(image_format: str, exact: bool) -> None:
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[:, :, 0] = np.linspace(0, 255, WIDTH)
    image = Image.open(io.BytesIO(encode_image(rgb, image_format)))
    assert image.format == image_format.upper()
    assert np.abs(np.asarray(image).astype(int) - rgb).max() <= (0 if exact else 4)


# --- task depth: the corpus's own images ---


def test_a_images_own_bytes_are_copied_where_they_show_it() -> None:
    made = result(0)
    original = encode_image(made.rgb, "png") + b"trailing bytes show that nothing was encoded again"
    made = with_row(made, rgb=made.rgb, rgb_bytes=original)
    (row,) = encode_samples([made], job("depth"), "kept").to_pylist()
    assert row["rgb"]["bytes"] == original
    cropped = with_row(made, rgb=np.zeros((HEIGHT + 2, WIDTH, 3), np.uint8))  # the window of it is another image
    (row,) = encode_samples([cropped], job("depth"), "kept").to_pylist()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["rgb"]["bytes"]))), made.rgb)


def test_by_reference_only_the_address_is_kept() -> None:
    spec = job("depth", output={"rgb": "reference"})
    made = with_row(result(0), uri="s3://corpus/a.JPG")
    assert encode_samples([made], spec, "kept").to_pylist()[0]["rgb"] == {"bytes": None, "path": "s3://corpus/a.JPG"}
    made = with_row(result(0), uri="s3://corpus/a.parquet")
    assert encode_samples([made], spec, "kept").to_pylist()[0]["rgb"] is None


# --- geometry ---


def test_assumed_and_given_geometry_are_told_apart() -> None:
    (row,) = encode_samples([result(0)], job(), "kept").to_pylist()
    assert row["intrinsics_source"] == "assumed"
    assert json.loads(row["params"])["range_source"] == "assumed"
    assert (row["cx"], row["cy"]) == (WIDTH / 2, HEIGHT / 2)
    spec = job(output={"points": {"fov_degrees": 90.0, "z_near": 0.5, "z_far": 20.0}})
    (row,) = encode_samples([result(0)], spec, "kept").to_pylist()
    assert row["fx"] == pytest.approx(HEIGHT / 2)
    assert (row["intrinsics_source"], row["z_near"], row["z_far"]) == ("given", 0.5, 20.0)


def test_metric_maps_bring_their_range_and_their_holes() -> None:
    depth = np.random.default_rng(5).uniform(2.0, 7.0, (HEIGHT, WIDTH)).astype(np.float32)
    valid = np.ones(depth.shape, bool)
    valid[10:20, 10:20] = False
    depth[~valid] = 0
    made = with_row(result(0, disparity=disparity_from_depth(depth, valid)), depth=depth, depth_valid=valid)
    (row,) = encode_samples([made], job("depth-to-image"), "kept").to_pylist()
    stored = decode_depth_png(row["depth"]["bytes"])
    assert (stored[~valid] == 0).all()
    assert (stored[valid] > 0).all()
    metres = metric_depth(stored, row["z_near"], row["z_far"])
    np.testing.assert_allclose(metres[valid], depth[valid], rtol=1e-4)
    params = json.loads(row["params"])
    assert params["range_source"] == "given"
    assert params["valid_fraction"] == pytest.approx(1 - 100 / depth.size, abs=1e-6)


def test_a_cropped_window_keeps_the_cameras_rays() -> None:
    spec = job("depth", output={"points": {"fov_degrees": 60.0}})
    made = with_row(result(0), rgb=np.zeros((HEIGHT + 20, WIDTH + 40, 3), np.uint8))
    whole = result(0, disparity=np.zeros((HEIGHT + 20, WIDTH + 40), np.float32))
    camera, full = geometry_of(made, spec).intrinsics, geometry_of(whole, spec).intrinsics
    assert (camera.fx, camera.fy) == (full.fx, full.fy)
    assert (camera.cx, camera.cy) == (full.cx - 20, full.cy - 10)


def test_points_in_columns_are_those_of_the_point_cloud() -> None:
    extras = {"normals": True, "confidence": True}
    spec = job(output={"points": {"format": "both", "edge_threshold": 0.1, **extras}})
    disparity = np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None].repeat(WIDTH, 1)
    made = result(0, disparity=disparity)
    table = pq.read_table(io.BytesIO(table_bytes(encode_samples([made], spec, "kept"))))
    cloud = point_cloud(made, geometry_of(made, spec), spec.output.points)
    assert 0 < len(cloud) < HEIGHT * WIDTH
    for name, values in (
        ("points", cloud.points),
        ("colors", cloud.colours),
        ("normals", cloud.normals),
        ("confidence", cloud.confidence),
    ):
        assert values is not None
        np.testing.assert_array_equal(np.array(table[name][0].as_py(), values.dtype), values)
