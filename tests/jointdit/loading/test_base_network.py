"""FLUX in the forms that it is published in: folders, shards, single files; dev and schnell; the memory it takes."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from jointdit import JointDiTPipeline, JointDiTTransformer2DModel
from jointdit.errors import ModelError
from jointdit.loading.base_network import load_base
from jointdit.loading.checkpoint_check import check_checkpoint
from jointdit.loading.official import NETWORK_PREFIX
from jointdit.sampling.solvers import default_scheduler, noise_levels
from tests.jointdit.conftest import randomise_adapter, small_components

CALL = {"prompt": "ab", "seeds": [3], "height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0}


class Published:
    """A small FLUX with an adapter, saved as diffusers does and as Black Forest Labs do; `plain` is in memory alone."""

    def __init__(self, folder: Path, guidance_embeds: bool) -> None:
        from diffusers import FluxPipeline

        self.folder, self.single = folder / "flux", folder / "flux1.safetensors"
        self.adapter = folder / "adapter.safetensors"
        parts = small_components(guidance_embeds)
        FluxPipeline(scheduler=default_scheduler(guidance_embeds), **parts).save_pretrained(self.folder)
        network = JointDiTTransformer2DModel.from_flux(parts.pop("transformer"), lora_ranks=2)
        randomise_adapter(network)
        network.to_official(self.single, self.adapter)
        self.plain = JointDiTPipeline(transformer=network, **parts)
        self.plain.set_progress_bar_config(disable=True)
        self.expected = self.plain(**CALL)

    def check(self, base: Path, components: Path | None = None, device: str | None = None) -> JointDiTPipeline:
        """Load it and compare its outputs, which must be the plain model's to the bit."""
        check_checkpoint(base, self.adapter, components)
        loaded = JointDiTPipeline.from_pretrained(base=base, adapter=self.adapter, components=components, device=device)
        loaded.set_progress_bar_config(disable=True)
        found = loaded(**CALL)
        assert (found.rgb == self.expected.rgb).all()
        assert (found.disparity == self.expected.disparity).all()
        return loaded


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"), request.param)


def test_outputs_are_the_plain_models_to_the_bit(published: Published, tmp_path: Path) -> None:
    """Folder, shards with an index, a transformer's folder with others' components, and a single file."""
    published.check(published.folder, device="cpu")

    sharded = Path(shutil.copytree(published.folder, tmp_path / "sharded"))
    shutil.rmtree(sharded / "transformer")
    flux = FluxTransformer2DModel.from_pretrained(published.folder / "transformer")
    flux.save_pretrained(sharded / "transformer", max_shard_size="100KB")
    assert len(list((sharded / "transformer").glob("*.safetensors"))) > 2
    published.check(sharded)
    published.check(sharded / "transformer", published.folder)

    loaded = published.check(published.single, published.folder, device="cpu")
    assert loaded.transformer.config.guidance_embeds == published.plain.transformer.config.guidance_embeds


def test_a_checkpoint_of_another_program(published: Published, tmp_path: Path) -> None:
    """The network under a prefix, beside a text encoder that is not read."""
    tensors = {NETWORK_PREFIX + name: tensor for name, tensor in load_file(published.single).items()}
    save_file({**tensors, "text_encoders.t5xxl.scale": torch.ones(1)}, tmp_path / "whole.safetensors")
    published.check(tmp_path / "whole.safetensors", published.folder)


def test_the_file_tells_of_guidance_whatever_its_components_say(published: Published, tmp_path: Path) -> None:
    """schnell's file with dev's components, and the reverse."""
    other = Path(shutil.copytree(published.folder, tmp_path / "other"))
    config = other / "transformer" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "guidance_embeds": not settings["guidance_embeds"]}))
    published.check(published.single, other)


def test_what_is_missing_is_one_sentence(published: Published, tmp_path: Path) -> None:
    for load in (check_checkpoint, lambda base, adapter: JointDiTPipeline.from_pretrained(base=base, adapter=adapter)):
        with pytest.raises(ModelError, match=r"flux1.safetensors: a single file holds only the transformer, give comp"):
            load(published.single, published.adapter)
    with pytest.raises(ModelError, match="components= needs base="):
        JointDiTPipeline.from_pretrained("tiny", components=published.folder)
    only_file = tmp_path / "only"
    only_file.mkdir()
    shutil.copy(published.single, only_file)
    sentence = r"no config.json, name the file flux1.safetensors itself and give components"
    with pytest.raises(ModelError, match=sentence):
        check_checkpoint(only_file, published.adapter, published.folder)
    with pytest.raises(ModelError, match=sentence):
        load_base(only_file, published.adapter, published.folder, torch.float32)
    tensors = load_file(published.single)
    del tensors["img_in.bias"]
    save_file(tensors, tmp_path / "without.safetensors")
    with pytest.raises(ModelError, match=r"without.safetensors: tensor img_in.bias of shape \(48,\) is missing"):
        check_checkpoint(tmp_path / "without.safetensors", published.adapter, published.folder)
    torch.save(tensors, tmp_path / "flux1.ckpt")
    with pytest.raises(ModelError, match=r"load from .safetensors only|it has no folder transformer"):
        JointDiTPipeline.from_pretrained(
            base=tmp_path / "flux1.ckpt", adapter=published.adapter, components=published.folder
        )


def memory() -> dict[str, int]:
    """This process's memory in bytes: its own, of mapped files, and the largest sum of both since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "RssFile", "VmHWM"))}
    return {name: int(value) * 1024 for name, value in values.items()}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_loading_takes_one_copy_of_the_weights(tmp_path: Path) -> None:
    """In the type they are stored in: mapped from the file, with next to no memory of the process's own."""
    config = {"num_layers": 1, "num_single_layers": 2, "attention_head_dim": 64, "num_attention_heads": 12}
    config |= {"joint_attention_dim": 64, "pooled_projection_dim": 64, "axes_dims_rope": (16, 24, 24)}
    with torch.device("meta"):
        network = FluxTransformer2DModel(**config)
    network = network.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in network.parameters():
        parameter.data.zero_()
    network.save_pretrained(tmp_path / "transformer")
    model = JointDiTTransformer2DModel.from_flux(network, lora_ranks=2)
    model.to_official(tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")
    del network, model
    components = tmp_path / "components" / "transformer"
    components.mkdir(parents=True)
    shutil.copy(tmp_path / "transformer" / "config.json", components)
    size = (tmp_path / "base.safetensors").stat().st_size
    assert size > 60e6
    for base in (tmp_path / "transformer", tmp_path / "base.safetensors"):
        load_base(base, tmp_path / "adapter.safetensors", components.parent, torch.bfloat16)  # what is loaded once
        Path("/proc/self/clear_refs").write_text("5")
        before = memory()
        loaded = load_base(base, tmp_path / "adapter.safetensors", components.parent, torch.bfloat16)
        total = sum(parameter.sum().item() for parameter in loaded.parameters())  # every page is read
        after = memory()
        assert math.isfinite(total)
        assert after["RssAnon"] - before["RssAnon"] < 0.2 * size, base
        assert after["VmHWM"] - before["RssAnon"] - before["RssFile"] < 1.5 * size, base
        del loaded


def test_the_base_says_its_schedule_and_text_length(published: Published, tmp_path: Path) -> None:
    """schnell: no shift, 256 tokens. A FLUX pipeline says so in its scheduler, a network alone by its guidance."""
    is_dev = published.plain.transformer.config.guidance_embeds
    for base, components in ((published.folder, None), (published.single, published.folder)):
        pipe = JointDiTPipeline.from_pretrained(base=base, adapter=published.adapter, components=components)
        assert pipe.config.max_sequence_length == (512 if is_dev else 256)
        levels = noise_levels(pipe.scheduler, 4, 1024)
        assert (levels.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]) != is_dev
    other = tmp_path / "flux"
    shutil.copytree(published.folder, other)
    default_scheduler(not is_dev).save_pretrained(other / "scheduler")
    pipe = JointDiTPipeline.from_pretrained(base=other, adapter=published.adapter)
    assert pipe.config.max_sequence_length == (256 if is_dev else 512), "a fine-tune without guidance may have a shift"
    pipe.save_pretrained(tmp_path / "saved")
    saved = JointDiTPipeline.from_pretrained(tmp_path / "saved")
    assert saved.config.max_sequence_length == pipe.config.max_sequence_length
    assert noise_levels(saved.scheduler, 4, 1024).equal(noise_levels(pipe.scheduler, 4, 1024))
