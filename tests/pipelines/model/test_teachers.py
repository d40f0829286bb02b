"""Task `prepare`, with small random checkpoints of the real classes: Depth-Anything-V2 and BLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.cli import main
from jointdit.errors import ModelError, SpecError
from jointdit.geometry.depth import decode_depth_png
from pipelines.dataset.validation.validate import validate
from pipelines.model.teachers import Captioner, DepthTeacher, mean_disparity
from pipelines.spec.job import load_spec
from pipelines.training.spec import DataSpec
from pipelines.training.tables import TablePairs
from tests.pipelines.model.test_encode import run_here
from tests.small_models import save_captioner, save_depth_anything


def save_teacher(folder: Path, **options: Any) -> Path:
    save_depth_anything(folder, **options)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "teacher": save_teacher(folder / "teacher"),
        "other": save_teacher(folder / "other", seed=1),
        "captioner": save_captioner(folder / "captioner"),
    }


def image(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def test_a_teacher_sees_the_image_and_answers_at_its_size(models: dict[str, Path]) -> None:
    teacher = DepthTeacher(str(models["teacher"]), "cpu", torch.float32)
    first, second = teacher([image(0), image(1)])
    assert first.shape == (40, 60)
    assert first.std() > 0
    assert not np.allclose(first, second)
    np.testing.assert_allclose(teacher([image(1)])[0], second, atol=1e-4 * second.max())


def test_teachers_are_brought_to_one_scale_before_they_are_averaged() -> None:
    map_ = np.random.default_rng(0).random((6, 7)).astype(np.float32)
    noise = np.random.default_rng(1).normal(0, 0.01, (6, 7)).astype(np.float32)
    np.testing.assert_allclose(mean_disparity([map_, 250 * map_ - 30]), map_, atol=1e-4)
    mean = mean_disparity([map_, 250 * (map_ + noise) - 30])
    assert 0 < np.abs(mean - map_).max() < 0.02
    np.testing.assert_allclose(mean_disparity([map_, np.ones_like(map_)]), (map_ + map_.mean()) / 2, atol=1e-6)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(40, 60), (60, 40), (40, 60)]):
        Image.fromarray(image(number, *size)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    return folder


def prepare_spec(photos: Path, output: Path, teachers: list[str], captioner: Path | None, **changes: Any) -> Any:
    data: dict[str, Any] = {"task": "prepare", "teachers": teachers, "caption_length": 8}
    data |= {"captioner": str(captioner) if captioner else None, "model": {"batch_size": 2}}
    data |= {"input": {"uri": str(photos)}, "output": {"uri": str(output)}}
    return load_spec({**data, "quality": {"max_quarantined_fraction": 1.0}, **changes})


def test_images_become_pairs_to_train_on(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    teachers = [str(models["teacher"]), str(models["other"])]
    version = run_here(prepare_spec(photos, tmp_path / "out", teachers, models["captioner"]))
    assert version.counts == {"kept": 3, "rejected": 0, "quarantined": 1}
    assert validate(str(tmp_path / "out")).problems == []
    (table,) = (tmp_path / "out/data").iterdir()
    rows = {row["source"]: row for row in pq.read_table(table).to_pylist()}
    first = rows["0.png:0"]
    assert first["rgb"]["bytes"] == (photos / "0.png").read_bytes()
    alone = [DepthTeacher(name, "cpu", torch.float32)([image(0)])[0] for name in teachers]
    mean = mean_disparity(alone)
    expected = (mean - mean.min()) / (mean.max() - mean.min())
    np.testing.assert_allclose(decode_depth_png(first["depth"]["bytes"]), expected, atol=1e-3)
    wanted = Captioner(str(models["captioner"]), "cpu", torch.float32, 8)([image(0)])
    assert first["prompt"] == wanted[0]
    assert first["prompt"].strip()
    assert decode_depth_png(rows["1.png:0"]["depth"]["bytes"]).shape == (60, 40)
    assert json.loads(first["params"])["task"] == "prepare"
    assert str(models["other"]) in first["model"]

    pairs = TablePairs(DataSpec(kind="dataset", uri=(str(tmp_path / "out"),)).as_input())
    assert [pair.rgb.shape for pair in pairs.read([0, 1, 2], (32, 32))] == [(32, 32, 3)] * 3


def test_given_captions_are_kept(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"image": f"photos/{number}.png", "prompt": f"photo {number}"}) for number in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    spec = prepare_spec(tmp_path / "list.jsonl", tmp_path / "out", [str(models["teacher"])], None)
    run_here(spec)
    (table,) = (tmp_path / "out/data").iterdir()
    assert pq.read_table(table)["prompt"].to_pylist() == ["photo 0", "photo 1", "photo 2"]


def test_models_that_do_not_fit_are_named(
    models: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = save_teacher(tmp_path / "metric", depth_estimation_type="metric", max_depth=20)
    with pytest.raises(ModelError, match="predicts metric depth: give a model of relative depth"):
        DepthTeacher(str(metric), "cpu", torch.float32)
    with pytest.raises(ModelError, match="cannot be loaded by AutoModelForDepthEstimation"):
        DepthTeacher(str(models["captioner"]), "cpu", torch.float32)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "pytorch_model.bin").write_bytes(b"pickle")
    spec = prepare_spec(photos, tmp_path / "out", [str(empty)], None)
    with pytest.raises(ModelError):
        run_here(spec)
    assert not (tmp_path / "out").exists()
    words = ["prepare", str(photos), "-o", str(tmp_path / "out"), "--teacher", str(empty)]
    assert main(words) == 1
    assert "no .safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SpecError, match="teachers"):
        prepare_spec(photos, tmp_path / "out", [], None)
