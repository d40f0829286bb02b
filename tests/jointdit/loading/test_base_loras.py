"""LoRAs of FLUX in the base: with a fresh adapter both halves are FLUX with that LoRA, by diffusers' own pipeline."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from jointdit.errors import ModelError
from jointdit.loading.base_loras import check_lora, fuse_loras
from jointdit.loading.base_network import load_base
from jointdit.model.latents import image_position_ids, text_position_ids
from jointdit.pipeline import JointDiTPipeline

LAYERS = {"transformer_blocks.0.attn.to_q": (48, 48), "single_transformer_blocks.1.proj_out": (240, 48)}


def lora(path: Path, seed: int, kohya: bool = False) -> Path:
    """A LoRA of rank 2 on two layers of the small FLUX; kohya's names have an alpha of 1, so half the strength."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (columns, rows) in LAYERS.items():
        a, b = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
        if kohya and name.startswith("single"):
            flat = "lora_unet_single_blocks_1_linear2"
            tensors |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b, f"{flat}.alpha": torch.tensor(1.0)}
        elif not kohya:
            tensors |= {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}
    save_file(tensors, path)
    return path


def inputs(halves: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "hidden_states": torch.randn(1, 6, 64, generator=generator).repeat(halves, 1, 1),
        "encoder_hidden_states": torch.randn(1, 4, 48, generator=generator).repeat(halves, 1, 1),
        "pooled_projections": torch.randn(1, 32, generator=generator).repeat(halves, 1),
        "timestep": torch.full((halves,), 0.6),
        "guidance": torch.full((halves,), 3.5),
        "img_ids": image_position_ids(2, 3),
        "txt_ids": text_position_ids(4),
    }


@torch.no_grad()
@pytest.mark.parametrize("kohya", [False, True], ids=["diffusers", "kohya"])
def test_both_halves_of_a_fresh_adapter_are_flux_with_the_loras(flux_folder: Path, tmp_path: Path, kohya: bool) -> None:
    loras = [(lora(tmp_path / "a.safetensors", 1, kohya), 0.5), (lora(tmp_path / "b.safetensors", 2), -0.25)]
    flux = FluxPipeline.from_pretrained(flux_folder)
    plain = flux.transformer(**inputs(1)).sample
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about several adapters
        for name, (path, _) in zip(("style", "few"), loras, strict=True):
            flux.load_lora_weights(path, adapter_name=name)
    flux.set_adapters(["style", "few"], [scale for _, scale in loras])
    expected = flux.transformer(**inputs(1)).sample
    assert (expected - plain).abs().mean() > 0.05
    network = load_base(flux_folder, None, None, torch.float32, base_loras=loras)
    found = network(**inputs(2)).sample
    for half in found:
        torch.testing.assert_close(half[None], expected, atol=1e-4, rtol=1e-4)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {
        name for name, _ in network.adapter_named_parameters()
    }


def test_a_pipeline_with_a_lora_is_not_the_one_without(
    small_pipeline: JointDiTPipeline, flux_folder: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter.safetensors"
    small_pipeline.transformer.to_official(adapter=adapter)
    path = lora(tmp_path / "a.safetensors", 1)
    call = {"prompt": "a box", "seeds": [1], "height": 32, "width": 32, "num_inference_steps": 1}
    disparity = [
        JointDiTPipeline.from_pretrained(base=flux_folder, adapter=adapter, base_loras=loras, max_sequence_length=8)(
            **call
        ).disparity
        for loras in ((), [(path, 0.0)], [(path, 1.0)])
    ]
    assert (disparity[0] == disparity[1]).all()
    assert abs(disparity[0] - disparity[2]).max() > 1e-3


def test_the_files_of_the_base_stay(flux_folder: Path, tmp_path: Path) -> None:
    """Loaded tensors are memory-mapped, and a LoRA is added to them in place."""
    file = flux_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    before = file.read_bytes()
    load_base(flux_folder, None, None, torch.float32, base_loras=[(lora(tmp_path / "a.safetensors", 1), 1.0)])
    assert file.read_bytes() == before


def changed(path: Path, rename: dict[str, str]) -> Path:
    tensors = load_file(lora(path, 1))
    for old, new in rename.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    save_file(tensors, path)
    return path


def test_what_cannot_be_fused_as_a_whole_is_refused(flux_folder: Path, tmp_path: Path) -> None:
    flux = FluxTransformer2DModel.from_pretrained(flux_folder / "transformer")
    before = {name: tensor.clone() for name, tensor in flux.state_dict().items()}
    for rename, message in (
        ({"transformer.": "text_encoder."}, r"text_encoder\..* is of a text encoder, and only the transformer takes"),
        ({"lora_A.weight": "dora_scale"}, r"dora_scale is of no plain LoRA"),
        ({"lora_": "x_"}, r"has no tensor of a LoRA"),
        (
            {"blocks.1": "blocks.9"},
            r"single_transformer_blocks\.9.* has no layer",
        ),
        ({"transformer.": "unet."}, r"is not of a LoRA of FLUX's transformer"),
    ):
        path = changed(tmp_path / "x.safetensors", rename)
        with pytest.raises(ModelError, match=message):
            fuse_loras(flux, [(path, 1.0)])
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"weights load from \.safetensors only"):
        check_lora(tmp_path / "x.bin")
    with pytest.raises(ModelError, match="its scale is nan, give a finite number"):
        fuse_loras(flux, [(lora(tmp_path / "y.safetensors", 1), float("nan"))])
    assert all(torch.equal(flux.get_parameter(name), tensor) for name, tensor in before.items())


def test_a_lora_without_a_base_or_on_quantised_weights_is_refused(flux_folder: Path, tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", 1)
    with pytest.raises(ModelError, match="base_loras= needs base="):
        JointDiTPipeline.from_pretrained("tiny", base_loras=[(path, 1.0)])
    with pytest.raises(ModelError, match="base_loras cannot be fused into quantised weights"):
        load_base(flux_folder, None, None, torch.float32, base_loras=[(path, 1.0)], quantization_config=object())
    with pytest.raises(ModelError, match=r"load_lora_weights would have no effect.*base_loras"):
        JointDiTPipeline.from_pretrained("tiny").load_lora_weights(path)
