"""Checkpoints that do not fit: one sentence that names the file and the tensor, exit code 1, no sample written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from jobs.cli import main
from jointdit.tiny.architecture import build_flux
from pipelines.model.weights.local import checkpoint_folder

GOLDEN = Path(__file__).parents[1] / "golden"
TENSOR = "proj_out.weight"


@pytest.fixture
def model(tmp_path):
    """A copy of the packaged checkpoint that tests damage."""
    return Path(shutil.copytree(checkpoint_folder("tiny"), tmp_path / "model"))


def change_tensors(model, change):
    (path,) = (model / "transformer").glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def pickled(model):
    (path,) = (model / "transformer").glob("*.safetensors")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


DAMAGE = {
    "pickle file": (pickled, ["transformer", "pickled files can run code"]),
    "tensor missing": (
        lambda model: change_tensors(model, lambda tensors: tensors.pop(TENSOR)),
        [TENSOR, "is missing"],
    ),
    "tensor of another shape": (
        lambda model: change_tensors(model, lambda tensors: tensors.update({TENSOR: torch.zeros(3, 5)})),
        [TENSOR, "(3, 5)"],
    ),
    "part of the folder missing": (lambda model: shutil.rmtree(model / "vae"), ["vae"]),
    "no index": (lambda model: (model / "model_index.json").unlink(), ["model_index.json"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint(name, model, tmp_path, capsys):
    damage, fragments = DAMAGE[name]
    damage(model)
    assert main(["generate", "a red cube", "-o", str(tmp_path / "out"), "--model", str(model), "--steps", "1"]) == 1
    assert_one_sentence(capsys, [str(model), *fragments])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_stops_a_run_before_it_writes(name, model, tmp_path, capsys):
    damage, fragments = DAMAGE[name]
    damage(model)
    (tmp_path / "prompts.txt").write_text("a red cube\n")
    spec = {
        "task": "joint",
        "model": {"name": str(model)},
        "input": {"uri": str(tmp_path / "prompts.txt")},
        "output": {"uri": str(tmp_path / "out")},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    assert main(["run", str(tmp_path / "spec.yaml")]) == 1
    assert_one_sentence(capsys, [str(model), *fragments])
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_size_stops_a_run(model, tmp_path, capsys):
    """The tiny FLUX with an adapter of another size."""
    shutil.rmtree(model / "transformer")
    build_flux().save_pretrained(model / "transformer")
    index = json.loads((model / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "FluxTransformer2DModel"]
    (model / "model_index.json").write_text(json.dumps(index))
    adapter = Path(shutil.copy(GOLDEN / "transformer_a.addons.safetensors", tmp_path))
    (tmp_path / "prompts.txt").write_text("a red cube\n")
    spec = {
        "task": "joint",
        "model": {"base": str(model), "adapter": str(adapter), "steps": 1, "height": 64, "width": 64},
        "input": {"uri": str(tmp_path / "prompts.txt")},
        "output": {"uri": str(tmp_path / "out")},
        "resources": {"workers": 1},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))

    assert main(["run", str(tmp_path / "spec.yaml")]) == 1

    assert_one_sentence(capsys, [str(adapter), "tensor"])
    assert not (tmp_path / "out").exists()


def assert_one_sentence(capsys, fragments):
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    for fragment in fragments:
        assert fragment in error
