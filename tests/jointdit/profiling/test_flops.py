from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel

from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.profiling.flops import forward_flops, operation_counter

SMALL = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 3,
    "joint_attention_dim": 40,
    "pooled_projection_dim": 24,
    "guidance_embeds": False,
    "axes_dims_rope": (8, 12, 12),
}


def counted(model, rows, image_tokens, text_tokens):
    """What PyTorch counts of one pass on the meta device, which computes shapes alone."""
    config = model.config
    with torch.device("meta"), operation_counter() as counter, torch.no_grad():
        model(
            torch.empty(rows, image_tokens, config.in_channels),
            timestep=torch.empty(rows),
            guidance=torch.empty(rows) if config.guidance_embeds else None,
            encoder_hidden_states=torch.empty(rows, text_tokens, config.joint_attention_dim),
            pooled_projections=torch.empty(rows, config.pooled_projection_dim),
            img_ids=torch.empty(image_tokens, 3),
            txt_ids=torch.empty(text_tokens, 3),
        )
    return counter.get_total_flops()


@pytest.mark.parametrize("size", ["small", pytest.param("FLUX.1-dev", marks=pytest.mark.slow)])
def test_the_formula_is_what_pytorch_counts(size):
    pairs, image_tokens, text_tokens = 3, 60, 17
    settings = {**SMALL, "lora_ranks": {"blocks": 16, "txt_in": 8}} if size == "small" else {"guidance_embeds": True}
    with torch.device("meta"):
        ours = JointDiTTransformer2DModel(**settings)
        flux = FluxTransformer2DModel(**{name: value for name, value in settings.items() if name != "lora_ranks"})
    found = forward_flops(ours.config, pairs, image_tokens, text_tokens)
    assert counted(ours, 2 * pairs, image_tokens, text_tokens) == found.total
    assert counted(flux, 2 * pairs, image_tokens, text_tokens) == found.flux
    assert forward_flops(flux.config, pairs, image_tokens, text_tokens).flux == found.flux
