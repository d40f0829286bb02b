"""Exports as their readers see them: load_dataset with only a path, and the webdataset package."""

from __future__ import annotations

import gc
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from jobs.cli import main
from jointdit.errors import PermanentError, StoreError
from pipelines.dataset import card, export
from pipelines.dataset.about import refresh
from pipelines.dataset.card import metadata
from pipelines.dataset.export import export_hf, export_webdataset
from pipelines.dataset.files import dataset_files
from pipelines.dataset.refilter import refilter
from pipelines.ledger.versions import Version, read_latest, read_outcomes
from pipelines.stages.sinks.ply import read_ply
from pipelines.store.storage import Storage
from tests.local_job import LocalJob

PROMPTS = ["a", "FLAT", "", "naïve “quotes”", "c", "d"]
LOSER = "data/0123456789abcdef-0123456789abcdef.parquet"


@pytest.fixture
def job(make_job: Any) -> LocalJob:
    """Two shards of four prompts; one sample is rejected, one quarantined; and the file of an attempt that lost."""
    quality = {"filters": [{"kind": "depth_range"}], "max_quarantined_fraction": 1.0}
    made: LocalJob = make_job(PROMPTS, quality=quality, output={"points": "ply"})
    made.complete()
    plant_loser(made.context.storage)
    return made


def plant_loser(storage: Storage) -> None:
    (first, *_) = latest(storage).files_of("kept")
    storage.write_bytes(LOSER, storage.read_bytes(first))


def latest(storage: Storage) -> Version:
    version = read_latest(storage)
    assert version is not None
    return version


def kept_ids(storage: Storage) -> list[str]:
    outcomes = read_outcomes(storage, latest(storage)).to_pylist()
    return [row["id"] for row in outcomes if row["outcome"] == "kept"]


def rows_of(storage: Storage) -> list[dict[str, Any]]:
    return [
        row
        for path in latest(storage).files_of("kept")
        for row in pq.read_table(io.BytesIO(storage.read_bytes(path))).to_pylist()
    ]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`load_dataset` with its cache in the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets.load_dataset


def check_loaded(found: Any, storage: Storage) -> None:
    """Exactly the samples of the latest version, with images."""
    assert list(found) == ["train"]
    rows = rows_of(storage)
    assert found["train"]["id"][:] == kept_ids(storage) == [row["id"] for row in rows]
    for shown, row in zip(found["train"], rows, strict=True):
        assert isinstance(shown["rgb"], Image.Image)
        for column in ("rgb", "depth"):
            exact = np.asarray(Image.open(io.BytesIO(row[column]["bytes"])))
            np.testing.assert_array_equal(np.asarray(shown[column]), exact)
        assert (shown["prompt"], shown["quality"]) == (row["prompt"], row["quality"])


def test_the_folder_itself_needs_nothing_but_its_path_and_shows_the_latest_version(job: LocalJob, load: Any) -> None:
    storage = job.context.storage
    assert len(kept_ids(storage)) == 4
    check_loaded(load(storage.uri), storage)

    first = kept_ids(storage)
    refilter(storage.uri, ["quality.filters=[{kind: depth_range, min_span: 0.0}]"])
    refresh(storage, job.ledger)
    assert set(first) < set(kept_ids(storage))
    check_loaded(load(storage.uri), storage)

    refilter(storage.uri, ["quality.filters=[{kind: depth_range, min_span: 0.99}]"])
    refresh(storage, job.ledger)
    assert len(kept_ids(storage)) == 0
    refilter(storage.uri, ["quality.filters=[{kind: depth_range, min_span: 0.5}]"])
    refresh(storage, job.ledger)
    assert latest(storage).number == 4
    check_loaded(load(storage.uri), storage)
    assert storage.exists(LOSER)


def test_a_card_of_many_files_refuses_the_folder_and_takes_their_list(
    job: LocalJob, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the names, `load_dataset` would read all of data/, tables of other versions included."""
    storage = job.context.storage
    monkeypatch.setattr(metadata, "MOST_FILES", 1)
    card.write(storage, job.ledger.read_job(), latest(storage))
    with pytest.raises(FileNotFoundError, match="too-many-to-name"):
        load(storage.uri)
    assert 'load_dataset("parquet", data_files=list(dataset_files(' in storage.read_bytes("README.md").decode()
    rows = load("parquet", data_files=list(dataset_files(storage.uri)), split="train")
    assert list(rows["id"]) == kept_ids(storage)
    assert rows[0]["rgb"].size == (32, 32)
    assert len(list(dataset_files(storage.uri, 1, "rejected"))) == 1


def test_the_exported_folder_stands_alone(job: LocalJob, load: Any, tmp_path: Path) -> None:
    storage = job.context.storage
    made = export_hf(storage.uri, str(tmp_path / "hf"))
    assert (made.samples, made.files, made.version) == (4, 2, 1)
    check_loaded(load(str(tmp_path / "hf")), storage)
    out = Storage(str(tmp_path / "hf"))
    clouds = {row["pointcloud"] for row in rows_of(storage)}
    assert {each.path for each in out.list("pointclouds")} == clouds
    assert len(clouds) == 4
    for path in clouds:
        assert out.read_bytes(path) == storage.read_bytes(path)
    names = {each.path.split("/")[0] for each in out.list()}
    assert names == {"data", "pointclouds", "figures", "README.md", "stats.json", "croissant.json", "export.json"}
    assert "gallery" not in out.read_bytes("README.md").decode()
    assert '"rejected")' not in out.read_bytes("README.md").decode()
    assert json.loads(out.read_bytes("export.json"))["samples"] == 4


def read_back(folder: Path) -> list[dict[str, Any]]:
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves files to the garbage collector
        found = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        gc.collect()
    return found


def check_tars(folder: Path, storage: Storage) -> None:
    rows, found = rows_of(storage), read_back(folder)
    assert [json.loads(sample["json"])["id"] for sample in found] == kept_ids(storage)
    for row, sample in zip(rows, found, strict=True):
        told = {name: value for name, value in row.items() if name not in ("rgb", "depth")}
        assert json.loads(sample["json"]) == told
        assert sample["rgb.png"] == row["rgb"]["bytes"]
        assert sample["depth.png"] == row["depth"]["bytes"]
        assert sample["txt"].decode() == row["prompt"]
        assert sample["ply"] == storage.read_bytes(row["pointcloud"])


def test_tars_read_back_equal(job: LocalJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = job.context.storage
    made = export_webdataset(storage.uri, str(tmp_path / "one"))
    assert (made.samples, made.files) == (4, 1)
    check_tars(tmp_path / "one", storage)
    monkeypatch.setattr(export, "TAR_BYTES", 1)  # every sample fills one
    many = export_webdataset(storage.uri, str(tmp_path / "many"))
    assert (many.samples, many.files) == (4, 4)
    check_tars(tmp_path / "many", storage)
    again = export_webdataset(storage.uri, str(tmp_path / "again"))
    assert again.bytes == many.bytes
    for path in (tmp_path / "many").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_points_in_columns_become_a_file_of_the_sample(make_job: Any, tmp_path: Path) -> None:
    points = {"format": "parquet", "confidence": True}
    job = make_job(["a"], output={"points": points, "image_format": "jpeg"})
    job.complete()
    storage = job.context.storage
    export_webdataset(storage.uri, str(tmp_path / "tars"))
    (row,), (sample,) = rows_of(storage), read_back(tmp_path / "tars")
    assert sample["rgb.jpg"] == row["rgb"]["bytes"]
    cloud = read_ply(sample["ply"])
    np.testing.assert_array_equal(cloud.points, np.array(row["points"], np.float32).reshape(-1, 3))
    np.testing.assert_array_equal(cloud.confidence, np.array(row["confidence"], np.float32))
    assert not {"points", "colors", "confidence"} & set(json.loads(sample["json"]))


def test_a_version_that_kept_nothing_is_an_empty_tar(make_job: Any, tmp_path: Path) -> None:
    job = make_job([""])
    job.complete()
    made = export_webdataset(job.context.storage.uri, str(tmp_path / "tars"))
    assert (made.samples, made.files) == (0, 1)
    assert read_back(tmp_path / "tars") == []
    assert export_hf(job.context.storage.uri, str(tmp_path / "hf")).samples == 0


def test_an_export_says_what_is_wrong(job: LocalJob, make_job: Any, tmp_path: Path) -> None:
    storage = job.context.storage
    for form in (export_webdataset, export_hf):
        with pytest.raises(PermanentError, match="overlaps the dataset"):
            form(storage.uri, f"{storage.uri}/tars")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not empty: export to a new folder"):
        export_hf(storage.uri, str(tmp_path / "full"))
    first = latest(storage).files_of("kept")[0]
    storage.write_bytes(first, storage.read_bytes(LOSER)[:-1])
    with pytest.raises(StoreError, match="is not what version 1 says: run validate"):
        export_hf(storage.uri, str(tmp_path / "damaged"))
    storage.delete(first)
    with pytest.raises(StoreError, match="is missing: run validate"):
        export_webdataset(storage.uri, str(tmp_path / "gone"))
    assert not (tmp_path / "gone" / "export.json").exists()


def test_from_s3_to_s3_by_the_command(make_job: Any, s3: Any, tmp_path: Path, capsys: Any) -> None:
    bucket = s3.make_bucket()
    job = make_job(["a", "b"], output={"uri": f"{bucket}/dataset", "points": "ply"})
    assert main(["export", f"{bucket}/dataset", "--hf", str(tmp_path / "hf")]) == 1
    assert "holds no job" in capsys.readouterr().err
    job.plan()
    assert main(["export", f"{bucket}/dataset", "--hf", str(tmp_path / "hf")]) == 1
    assert "has no version yet: run the job to its end first, or publish what is made." in capsys.readouterr().err
    job.complete()
    assert main(["export", f"{bucket}/dataset"]) == 1
    assert "give --webdataset DIR, --hf DIR" in capsys.readouterr().err
    places = ["--webdataset", str(tmp_path / "tars"), "--hf", f"{bucket}/hf"]
    assert main(["export", f"{bucket}/dataset", *places]) == 0
    assert "2 samples of version 1 in 1 tar" in " ".join(capsys.readouterr().out.split())
    check_tars(tmp_path / "tars", job.context.storage)
    out = Storage(f"{bucket}/hf")
    assert out.exists("README.md")
    table = pq.read_table(io.BytesIO(out.read_bytes("data/train-00000-of-00001.parquet")))
    assert table["id"].to_pylist() == kept_ids(job.context.storage)
