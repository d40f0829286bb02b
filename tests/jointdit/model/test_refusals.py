"""diffusers' methods on the network: caches work in the sampling loop, and what cannot work is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft import LoraConfig

from jointdit import denoise
from jointdit.errors import ModelError
from jointdit.model.latents import image_position_ids

STEPS = 8
CACHES: dict[str, Any] = {
    "first block": FirstBlockCacheConfig(threshold=2.0),
    "taylor": TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2),
    "magnitude": MagCacheConfig(num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS, threshold=1.0),
    "broadcast": PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
}


def sampling(io: dict[str, torch.Tensor], pairs: int = 1) -> dict[str, Any]:
    noise = torch.randn(2, pairs, 16, 64, generator=torch.Generator().manual_seed(3))
    return {
        "task": "joint",
        "noise": tuple(noise),
        "prompt_embeds": io["in.txt"][:1].expand(pairs, -1, -1),
        "pooled_prompt_embeds": io["in.y"][:1].expand(pairs, -1),
        "img_ids": image_position_ids(4, 4),
        "txt_ids": io["in.txt_ids"][0],
        "num_inference_steps": STEPS,
    }


@pytest.mark.parametrize("name", list(CACHES))
def test_a_cache_of_diffusers_skips_work_and_starts_afresh(golden, name):
    model, io = golden.network(), golden.tensors("sample_a")
    inputs = sampling(io)
    exact = torch.cat(denoise(model, **inputs))
    model.enable_cache(CACHES[name])
    first = torch.cat(denoise(model, **inputs))
    assert 0 < (first - exact).abs().mean() < exact.std()

    def fail(step: int, *_: Any) -> None:
        if step == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):  # as if the GPU had no memory left: the next batch has other samples
        denoise(model, **sampling(io, pairs=2), on_step=fail)
    assert torch.equal(torch.cat(denoise(model, **inputs)), first)
    model.disable_cache()
    assert torch.equal(torch.cat(denoise(model, **inputs)), exact)


def test_a_cache_that_takes_the_halves_for_guidance_is_refused(golden):
    with pytest.raises(ModelError, match="FasterCacheConfig does not work with JointDiT's batch: use one of First"):
        golden.network().enable_cache(FasterCacheConfig())


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("load_lora_adapter", ({},), "load_lora_adapter would have no effect.*base_loras"),
        ("add_adapter", (LoraConfig(target_modules=["to_q"]), "style"), "add_adapter would have no effect.*base_loras"),
        ("save_lora_adapter", ("folder",), "use to_official"),
        ("set_adapters", ("depth", 0.0), "is a part of the network"),
        ("set_adapter", ("depth",), "is a part of the network"),
        ("delete_adapters", ("depth",), "is a part of the network"),
        ("unload_lora", (), "is a part of the network"),
        ("disable_lora", (), "is a part of the network"),
        ("enable_lora", (), "is a part of the network"),
        ("disable_adapters", (), "is a part of the network"),
        ("enable_adapters", (), "is a part of the network"),
        ("fuse_lora", (), "is a part of the network"),
        ("unfuse_lora", (), "is a part of the network"),
        ("set_attn_processor", (FluxAttnProcessor(),), "no joint connection"),
        ("fuse_qkv_projections", (), "no depth LoRA"),
    ],
)
def test_a_method_that_would_lose_the_depth_branch_is_refused(golden, method, arguments, message):
    model = golden.network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        getattr(model, method)(*arguments)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
