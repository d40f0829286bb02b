from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jointdit import JointDiTPipeline, JointDiTTransformer2DModel
from jointdit.errors import ModelError
from jointdit.loading.checkpoint_check import check_checkpoint
from jointdit.loading.checkpoint_files import tensor_shapes


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
    with pytest.raises(ModelError, match="nobody/nothing: no local folder, and the hub download failed"):
        JointDiTPipeline.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)


def test_an_adapter_for_another_base(golden, flux_folder):
    with pytest.raises(ModelError, match=r"has shape .* but the network needs|is not in the network|is missing"):
        JointDiTPipeline.from_pretrained(base=flux_folder, adapter=golden.folder / "transformer_a.addons.safetensors")


# --- nothing in a checkpoint is run -----------------------------------------------------------------------------------


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def edit(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def renamed_pickle(folder: Path, marker: Path) -> None:
    weights(folder, "vae").write_bytes(pickle.dumps(Payload(marker)))


def renamed_archive(folder: Path, marker: Path) -> None:
    torch.save({"a": Payload(marker)}, weights(folder, "text_encoder_2"))


def index_of_pickles(component: str, name: str) -> Callable[[Path, Path], None]:
    def damage(folder: Path, marker: Path) -> None:
        path = weights(folder, component)
        tensors = load_file(path)
        torch.save(tensors, folder / component / "shard.bin")
        path.rename(path.with_name("other.safetensors"))
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "shard.bin")}
        (folder / component / f"{name}.safetensors.index.json").write_text(json.dumps(index))

    return damage


def index_elsewhere(folder: Path, marker: Path) -> None:
    index = {"weight_map": {"a": f"../vae/{weights(folder, 'vae').name}"}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))


def peft_adapter(folder: Path, marker: Path) -> None:
    config = {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (folder / "text_encoder" / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"a": Payload(marker)}, folder / "text_encoder" / "adapter_model.bin")


def code_of_a_tokenizer(folder: Path, marker: Path) -> None:
    edit(
        folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": ["own.T", None]}
    )
    (folder / "tokenizer" / "own.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass T: pass\n")


WAYS = {
    "a pickle called safetensors": (renamed_pickle, "not a readable safetensors file"),
    "a torch archive called safetensors": (renamed_archive, "not a readable safetensors file"),
    "an index that names pickles, transformers": (index_of_pickles("text_encoder_2", "model"), "pickled files can run"),
    "an index that names pickles, diffusers": (index_of_pickles("vae", "diffusion_pytorch_model"), "pickled files can"),
    "an index that names files elsewhere": (index_elsewhere, "not a .safetensors file in the same folder"),
    "an adapter that is loaded unasked": (peft_adapter, "adapter_config.json"),
    "code of a tokenizer": (code_of_a_tokenizer, "contains custom code"),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_unpickled_or_run(way, folder, tmp_path, monkeypatch):
    damage, sentence = WAYS[way]
    marker = tmp_path / "it-ran"
    damage(folder, marker)
    for load in (check_checkpoint, JointDiTPipeline.from_pretrained):
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # transformers would ask whether to run the code
        with pytest.raises(ModelError, match=sentence):
            load(folder)
        assert not marker.exists()


@pytest.mark.parametrize("name", ["adapter.bin", "adapter.pt", "adapter.ckpt", "adapter.safetensors"])
def test_a_pickled_adapter_is_not_opened(name, tmp_path, flux_folder):
    torch.save({"a": Payload(tmp_path / "it-ran")}, tmp_path / name)
    is_called_so = name.endswith(".safetensors")
    sentence = "not a readable safetensors file" if is_called_so else r"load from \.safetensors only"
    for load in (tensor_shapes, lambda path: JointDiTPipeline.from_pretrained(base=flux_folder, adapter=path)):
        with pytest.raises(ModelError, match=sentence):
            load(tmp_path / name)
    assert not (tmp_path / "it-ran").exists()


def test_a_hub_model_of_pickles_is_refused(saved, tmp_path):
    """As the hub's cache holds it: only safetensors are asked for, and only they are opened."""
    snapshot = tmp_path / "models--somebody--model" / "snapshots" / ("0" * 40)
    shutil.copytree(saved, snapshot)
    (tmp_path / "models--somebody--model" / "refs").mkdir()
    (tmp_path / "models--somebody--model" / "refs" / "main").write_text("0" * 40)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert JointDiTPipeline.from_pretrained("somebody/model", **options).config.default_height
    path = weights(snapshot, "text_encoder")
    torch.save({"a": Payload(tmp_path / "it-ran")}, path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file|hub"):
        JointDiTPipeline.from_pretrained("somebody/model", **options)
    assert not (tmp_path / "it-ran").exists()


CONFIGURATIONS = {
    "no JSON": lambda folder: (folder / "text_encoder_2" / "config.json").write_text("{"),
    "a list": lambda folder: (folder / "text_encoder" / "config.json").write_text("[]"),
    "no text": lambda folder: (folder / "vae" / "config.json").write_bytes(b"\xff\xfe"),
    "a word for a number": lambda folder: edit(folder / "text_encoder_2" / "config.json", d_model="big"),
    "a word for layers": lambda folder: edit(folder / "transformer" / "config.json", num_layers="many"),
    "an index that is no JSON": lambda folder: (folder / "vae" / "x.safetensors.index.json").write_text("{"),
    "an index of nothing": lambda folder: (folder / "vae" / "x.safetensors.index.json").write_text("{}"),
    "a tokenizer of nothing": lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}'),
}


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_a_damaged_configuration_is_one_sentence_that_names_its_folder(what, folder):
    CONFIGURATIONS[what](folder)
    for load in (check_checkpoint, JointDiTPipeline.from_pretrained):
        with pytest.raises(ModelError, match=rf"^{folder}/(text_encoder|vae|transformer|tokenizer)") as caught:
            load(folder)
        assert "\n" not in str(caught.value)
