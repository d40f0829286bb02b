"""Pairs to train on, from tables and from datasets that this system published, and what is wrong with them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.train import load_train_spec
from jointdit.errors import InputError, SpecError
from jointdit.training.batches import BatchPlan
from pipelines.training.run import check
from pipelines.training.spec import AdapterJob, DataSpec
from pipelines.training.tables import TablePairs

METRIC = {"kind": "metric", "scale": 0.001}


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def ramp(height: int = 40, width: int = 60) -> np.ndarray:
    """Millimetres, nearest at the left."""
    return np.tile(np.linspace(1000, 5000, width).astype(np.uint16), (height, 1))


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    rgb_image = np.full((40, 60, 3), number, np.uint8)
    found = {"image": {"bytes": png(rgb_image), "path": None}, "depth": png(ramp()), "text": f"caption {number}"}
    return {**found, **changes}


def table(path: Path, rows: list[dict[str, Any]], row_group_size: int = 3) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def pairs_of(uri: Path, **changes: Any) -> TablePairs:
    settings = {"kind": "table", "uri": str(uri), "depth": METRIC, "columns": {"prompt": "text"}, **changes}
    return TablePairs(DataSpec.model_validate(settings).as_input())


def test_pairs_by_number_over_files_and_row_groups(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", [row(number) for number in range(7)])
    table(tmp_path / "b.parquet", [row(number) for number in range(7, 10)])
    pairs = pairs_of(tmp_path)
    assert list(pairs.blocks()) == [3, 3, 1, 3]
    found = pairs.read([9, 0, 4], (32, 48))
    assert [pair.caption for pair in found] == ["caption 9", "caption 0", "caption 4"]
    assert [int(pair.rgb[0, 0, 0]) for pair in found] == [9, 0, 4]
    for pair in found:
        assert pair.rgb.shape == (32, 48, 3)
        assert pair.disparity.shape == (32, 48)
        assert (pair.disparity[:, 0] == 1).all()
        assert (pair.disparity[:, -1] == 0).all()
    assert list(pairs.sizes()) == [(40, 60)] * 10


def test_images_go_to_the_bucket_of_their_aspect(tmp_path: Path) -> None:
    tall = {"image": {"bytes": png(np.zeros((60, 40, 3), np.uint8)), "path": None}, "depth": png(ramp(60, 40))}
    rows = [row(0), row(1, **tall), row(2), row(3, **tall)]
    pairs = pairs_of(table(tmp_path / "a.parquet", rows))
    plan = BatchPlan(pairs, [(32, 48), (48, 32)], 2, 0)
    assert plan.steps_an_epoch == 2
    for step in range(2):
        bucket, numbers = plan.pairs_of(step)
        assert {int(number) % 2 for number in numbers} == {0 if bucket == (32, 48) else 1}


def test_a_published_dataset_gives_its_kept_samples(tmp_path: Path, make_job: Any) -> None:
    job = make_job(["a red sphere", "NAN", "a cube"], output={"uri": str(tmp_path / "out")})
    version = job.complete()
    assert version.counts == {"kept": 2, "rejected": 0, "quarantined": 1}
    pairs = TablePairs(DataSpec(kind="dataset", uri=(str(tmp_path / "out"),)).as_input())
    assert sum(pairs.blocks()) == 2
    assert [pair.caption for pair in pairs.read([0, 1], (32, 32))] == ["a red sphere", "a cube"]


def bad(depth: Any = None, **changes: Any) -> list[dict[str, Any]]:
    if depth is not None:
        changes["depth"] = depth
    return [row(0, **changes)]


def with_nan() -> bytes:
    depth = ramp().astype(np.float32)
    depth[3, 4] = np.nan
    return npy(depth)


BAD = {
    "no caption": (bad(text=None), "prompt is missing"),
    "depth of another size": (bad(png(ramp(20, 30))), "depth map is 30 x 20 and the image 60 x 40 pixels"),
    "NaN": (bad(with_nan()), r"depth map has no value \(NaN, or depth.invalid\) at 0.04% of its pixels"),
    "all NaN": (bad(npy(np.full((40, 60), np.nan))), "no valid pixel"),
    "constant": (bad(png(np.full((40, 60), 1000, np.uint16))), "depth map is constant at 1"),
    "no image": (bad(image={"bytes": b"no", "path": None}), "image has an unknown format"),
}


@pytest.mark.parametrize(("rows", "problem"), BAD.values(), ids=BAD.keys())
def test_a_row_that_cannot_be_trained_on_is_named(tmp_path: Path, rows: list[dict[str, Any]], problem: str) -> None:
    pairs = pairs_of(table(tmp_path / "a.parquet", rows))
    with pytest.raises(InputError, match=rf"row a.parquet:0 cannot be trained on: .*{problem}"):
        pairs.read([0], (32, 48))


def test_a_table_without_captions_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row().items() if key != "text"}]
    spec = tmp_path / "train.yaml"
    spec.write_text(
        f"recipe: adapter\noutput: {tmp_path / 'out'}\nmodel: {{name: tiny}}\n"
        f"data: {{kind: table, uri: {table(tmp_path / 'a.parquet', rows)}, depth: {{kind: metric}}}}\n"
        "training: {steps: 1, buckets: [[32, 32]]}\n"
    )
    job = load_train_spec(spec)
    assert isinstance(job, AdapterJob)
    with pytest.raises(InputError, match=r"has no column 'prompt' for input\.columns\.prompt: it has image"):
        check(job)
    assert not (tmp_path / "out").exists()


GOOD = {
    "recipe": "adapter",
    "output": "out",
    "model": {"name": "tiny"},
    "data": {"kind": "scenes"},
    "training": {"steps": 1},
}
WRONG = [
    ({"data": {"kind": "table", "uri": "a.parquet"}}, "data: kind table needs depth: give the content of the maps"),
    ({"data": {"kind": "dataset"}}, "data: kind dataset needs uri"),
    ({"data": {"kind": "scenes", "uri": "a"}}, "data: kind scenes takes no uri"),
    ({"model": {"name": "tiny", "adapter": "a.safetensors"}}, "model: name and adapter do not go together"),
    ({"model": {"dtype": "float32"}}, "model: give either name"),
    ({"training": {"steps": 0}}, "training.steps must be greater than 0, found 0"),
    ({"training": {"steps": 1, "buckets": [[30, 32]]}}, "training.buckets.0.0.*multiple of 16"),
    (
        {"training": {"steps": 1, "optimizr": {}}},
        "training.optimizr is not a key of the spec: did you mean optimizer",
    ),
    ({"resources": {"strategy": "fsdp"}}, "resources.strategy fsdp needs training.optimizer.kind adamw"),
    ({"output": "s3://bucket/run"}, "output must be a folder that all workers can access"),
    ({"recipe": "huge"}, "recipe 'huge' .* is unknown: choose one of tiny, adapter"),
]


@pytest.mark.parametrize(("changes", "problem"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_spec_is_one_sentence(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    import yaml

    (tmp_path / "train.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    with pytest.raises(SpecError, match=problem):
        load_train_spec(tmp_path / "train.yaml")


def test_the_example_spec_loads() -> None:
    job = load_train_spec(Path(__file__).parents[3] / "jobs/train_adapter.yaml")
    assert isinstance(job, AdapterJob)
    assert job.training.pairs_a_step(job.resources.workers) == 4
