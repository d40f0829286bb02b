from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jointdit.errors import ModelError
from pipelines.model.fingerprint import fingerprint_of
from pipelines.model.identity import ModelIdentity, identify, with_guidance
from pipelines.model.weights.local import checkpoint_folder
from pipelines.spec.job import ModelSpec, load_spec


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "model.safetensors").write_bytes(b"weights")
    (folder / "model_index.json").write_text(json.dumps({"default_height": 96, "default_width": 64}))
    (folder / "README.md").write_text("about")
    return folder


def identity(folder: Path, **settings: int) -> ModelIdentity:
    return identify(ModelSpec(name=str(folder), **settings))


def test_the_packaged_checkpoint_has_its_own_size() -> None:
    found = identify(ModelSpec(name="tiny"))
    index = json.loads((checkpoint_folder("tiny") / "model_index.json").read_text())
    assert (found.height, found.width) == (index["default_height"], index["default_width"])
    assert found.bytes > 1_000_000
    assert found == identify(ModelSpec(name="tiny"))


def test_the_hash_follows_what_decides_pixels_and_not_the_place_or_the_card(checkpoint: Path, tmp_path: Path) -> None:
    first = identity(checkpoint)
    assert (first.height, first.width) == (96, 64)
    assert first.bytes == 7 + (checkpoint / "model_index.json").stat().st_size
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("other words")
    assert identity(tmp_path / "copy").weights == first.weights
    (tmp_path / "copy" / "vae" / "model.safetensors").write_bytes(b"Weights")
    assert identity(tmp_path / "copy").weights != first.weights
    (checkpoint / "vae" / "model.safetensors").rename(checkpoint / "vae" / "other.safetensors")
    assert identity(checkpoint).weights != first.weights


def test_guidance_that_is_left_out_is_the_checkpoints_own_for_depth(checkpoint: Path) -> None:
    index = checkpoint / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "default_depth_guidance": 2}))
    model = identity(checkpoint)

    def guidance(task: str, **settings: float) -> object:
        uris = {"input": {"uri": "in"}, "output": {"uri": "out"}}
        spec = load_spec({"task": task, "model": {"name": str(checkpoint), **settings}, **uris})
        assert with_guidance(spec, model).model.guidance == fingerprint_of(spec, model)["model.guidance"]
        return with_guidance(spec, model).model.guidance

    assert guidance("depth") == 2
    assert guidance("joint") == 3.5
    assert guidance("depth", guidance=3.5) == 3.5
    index.write_text(json.dumps({"default_height": 96, "default_width": 64}))
    model = identity(checkpoint)
    assert guidance("depth") == 3.5


def test_the_specs_size_wins(checkpoint: Path) -> None:
    found = identity(checkpoint, height=32, width=48)
    assert (found.height, found.width) == (32, 48)


def test_base_and_adapter_and_components_are_all_part_of_it(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"
    base.write_bytes(b"base")
    adapter.write_bytes(b"adapter")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "vae.safetensors").write_bytes(b"vae")
    spec = ModelSpec(base=str(base), adapter=str(adapter), components=str(tmp_path / "parts"))
    first = identify(spec)
    assert (first.bytes, first.height, first.width) == (14, 512, 512)
    adapter.write_bytes(b"ADAPTER")
    second = identify(spec)
    assert second.weights != first.weights
    (tmp_path / "parts" / "vae.safetensors").write_bytes(b"VAE")
    assert identify(spec).weights not in (first.weights, second.weights)


def test_a_hub_name_is_known_by_the_commit_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("c0ffee")
    snapshot = tmp_path / "models--some--model" / "snapshots" / "c0ffee" / "vae"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = identify(ModelSpec(name="some/model"))
    assert (found.weights, found.bytes) == ("c0ffee", 7)
    with pytest.raises(ModelError, match=r"model.name other/model is not a local folder and not an accessible model"):
        identify(ModelSpec(name="other/model"))


def test_what_is_no_checkpoint_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model.name .*nothing does not exist: give a checkpoint folder"):
        identity(tmp_path / "nothing")
    (checkpoint / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match=r"model_index.json is not a JSON object: save"):
        identity(checkpoint)
    (checkpoint / "vae" / "model.safetensors").rename(checkpoint / "vae" / "model.bin")
    with pytest.raises(
        ModelError, match=r"is a folder without weights: give one with model_index.json and .safetensors"
    ):
        identity(checkpoint)
