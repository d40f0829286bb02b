from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jointdit import JointDiTPipeline, JointDiTTransformer2DModel
from jointdit.errors import ModelError


@pytest.fixture(scope="module")
def saved(small_pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    small_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def weights(folder: Path, component: str) -> Path:
    (path,) = (folder / component).glob("*.safetensors")
    return path


def test_transformer_round_trip_stores_a_shared_a_once(small_pipeline, saved):
    stored = load_file(weights(saved, "transformer"))
    state = small_pipeline.transformer.state_dict()
    assert set(stored) == set(state)
    block = "single_transformer_blocks.0"
    assert [name for name in stored if name.startswith(block) and "lora_A" in name] == [
        f"{block}.attn.to_q.lora_A.depth.weight",
        f"{block}.norm.linear.lora_A.depth.weight",
    ]
    loaded = JointDiTTransformer2DModel.from_pretrained(saved / "transformer")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())
    shared = loaded.single_transformer_blocks[0]
    assert shared.proj_mlp.lora_A["depth"].weight is shared.attn.to_q.lora_A["depth"].weight


def test_shards(small_pipeline, tmp_path):
    small_pipeline.transformer.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = JointDiTTransformer2DModel.from_pretrained(tmp_path)
    state = small_pipeline.transformer.state_dict()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())
    min(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"shard diffusion_pytorch_model-00001-of-\d+.safetensors of .* is missing"):
        JointDiTTransformer2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_pickled_weights_are_refused(folder, component):
    path = weights(folder, component)
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(
        ModelError, match=rf"{component}: no .safetensors file \(only .*\.bin, and pickled files can run"
    ):
        JointDiTPipeline.from_pretrained(folder)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_missing_tensor(folder, component):
    path = weights(folder, component)
    tensors = load_file(path)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{component}: tensor \S*{name.split('.')[-1]} .*missing") as caught:
        JointDiTPipeline.from_pretrained(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_tensor_of_another_shape(folder, component):
    path = weights(folder, component)
    tensors = load_file(path)
    name = max(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name] = torch.zeros(3, 5)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        JointDiTPipeline.from_pretrained(folder)
    assert component in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_and_config_of_two_models(folder):
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": 2}))
    with pytest.raises(ModelError, match=r"transformer: tensor \S+ has shape \(\d.*\) but the network needs \(\d.*\)"):
        JointDiTPipeline.from_pretrained(folder)


def test_a_damaged_file(folder):
    path = weights(folder, "transformer")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        JointDiTPipeline.from_pretrained(folder)


def test_folders_that_are_no_checkpoint(folder, tmp_path):
    with pytest.raises(ModelError, match="nowhere: there is no such folder"):
        JointDiTPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"model_index.json is missing"):
        JointDiTPipeline.from_pretrained(tmp_path)
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(ModelError, match="tokenizer_2: there is no such folder"):
        JointDiTPipeline.from_pretrained(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match="vae: there is no such folder"):
        JointDiTPipeline.from_pretrained(folder)
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config.json is missing"):
        JointDiTTransformer2DModel.from_pretrained(folder / "transformer")


def test_which_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="either the name of a JointDiT checkpoint, or both base="):
        JointDiTPipeline.from_pretrained()
    with pytest.raises(ModelError, match="both base="):
        JointDiTPipeline.from_pretrained(base=tmp_path)
    with pytest.raises(ModelError, match="nobody/nothing: neither a folder here nor to be had from the hub"):
        JointDiTPipeline.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)


def test_an_adapter_for_another_base(golden, flux_folder):
    with pytest.raises(ModelError, match=r"has shape .* but the network needs|has no place in the network|is missing"):
        JointDiTPipeline.from_pretrained(base=flux_folder, adapter=golden.folder / "transformer_a.addons.safetensors")
