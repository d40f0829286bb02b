"""The three tasks with the tiny checkpoint, from the input to a valid version, on a local folder and on S3."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jointdit.geometry.depth import decode_depth_png, encode_depth_png
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import Version
from pipelines.run.job import run_job
from pipelines.store.storage import Storage

PROMPTS = ["a large red sphere on a blue floor", "a small green cube", "", "two cylinders", "a yellow cone"]


def rows_of(output: str, version: Version, outcome: str = "kept") -> list[dict]:
    storage = Storage(output)
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(path))) for path in version.files_of(outcome)]
    return pa.concat_tables(tables).to_pylist() if tables else []


def image(row: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["rgb"]["bytes"])))


def scene(seed: int, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.kron(random.integers(0, 256, (5, 5, 3), dtype=np.uint8), np.ones((height // 5, width // 5, 1), np.uint8))


def test_joint(ray_cluster: None, make_spec, output: str) -> None:
    quality = {"scores": ["self_consistency"]}
    spec = make_spec(PROMPTS, input={"samples_per_row": 2}, output={"uri": output, "points": "ply"}, quality=quality)
    summary = run_job(spec)
    assert summary.counts_now == {"kept": 8, "rejected": 0, "quarantined": 2}
    validated = validate(output)
    assert validated.problems == []
    assert (validated.images, validated.pointclouds) == (16, 8)
    rows = rows_of(output, summary.version)
    assert [row["id"] for row in rows[:3]] == ["prompts.txt:0/0", "prompts.txt:0/1", "prompts.txt:1/0"]
    assert rows[0]["prompt"] == PROMPTS[0]
    assert image(rows[0]).shape == (32, 32, 3)
    assert decode_depth_png(rows[0]["depth"]["bytes"]).shape == (32, 32)
    assert (image(rows[0]) != image(rows[1])).any()
    assert len({row["quality"]["self_consistency_abs_rel"] for row in rows} - {None}) == 8
    status = read_status(output)
    assert status.is_complete
    assert (status.committed_samples, status.counts["quarantined"]) == (10, 2)
    again = run_job(spec)
    assert (again.is_new, again.samples_now, again.committed_before) == (False, 0, 2)


def test_depth_of_images_of_any_size(ray_cluster: None, make_spec, output: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = scene(0, 700, 1000)
    Image.fromarray(photo).save(folder / "a-photo.png")
    Image.fromarray(scene(1, 60, 40)).save(folder / "small.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    quality = {"scores": [{"kind": "ensemble_spread", "estimates": 2, "steps": 1}]}
    spec = make_spec(task="depth", input={"uri": str(folder)}, output={"uri": output}, quality=quality)
    summary = run_job(spec)
    assert summary.counts_now == {"kept": 2, "rejected": 0, "quarantined": 1}
    assert validate(output).problems == []
    large, small = rows_of(output, summary.version)
    assert large["quality"]["ensemble_abs_rel_spread"] > 0
    assert (large["width"], large["height"]) == (1000, 700)
    np.testing.assert_array_equal(image(large), photo)
    assert decode_depth_png(large["depth"]["bytes"]).shape == (700, 1000)
    assert decode_depth_png(small["depth"]["bytes"]).shape == (60, 40)
    (bad,) = rows_of(output, summary.version, "quarantined")
    assert bad["id"] == "broken.png:0/0"
    assert "image has an unknown format" in bad["error"]


@pytest.mark.slow
def test_depth_to_image(ray_cluster: None, make_spec, output: str, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    disparity = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    (folder / "ramp.png").write_bytes(encode_depth_png(disparity))
    (folder / "flat.png").write_bytes(encode_depth_png(np.full((48, 64), 0.5, np.float32)))
    inputs = {"uri": str(folder), "prompt": "a red cube", "depth": {"kind": "disparity", "invalid": None}}
    spec = make_spec(task="depth-to-image", input={**inputs, "samples_per_row": 2}, output={"uri": output})
    summary = run_job(spec)
    assert summary.counts_now == {"kept": 2, "rejected": 0, "quarantined": 2}
    assert validate(output).problems == []
    for row in rows_of(output, summary.version):
        np.testing.assert_allclose(decode_depth_png(row["depth"]["bytes"]), disparity, atol=2e-5)
        assert image(row).shape == (48, 64, 3)
        assert row["source"] == "ramp.png:0"
