"""`condition_refresh`: the given half kept over sampling steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import FirstBlockCacheConfig

from jointdit import denoise
from jointdit.errors import InputError
from jointdit.model.condition_cache import ConditionCache, Half, KeptAttention
from jointdit.model.latents import image_position_ids
from jointdit.profiling.flops import operation_counter

TASKS: dict[str, Half] = {"depth": "rgb", "depth-to-image": "depth"}


def forward_inputs(io: dict[str, torch.Tensor], given: Half, t: float) -> dict[str, Any]:
    """Two pairs with texts of their own; the given half is clean, the other at noise level t."""
    generator = torch.Generator().manual_seed(0)
    text, pooled = (torch.randn(2, *io[name].shape[1:], generator=generator) for name in ("in.txt", "in.y"))
    timestep = torch.tensor([0, 0, t, t] if given == "rgb" else [t, t, 0, 0], dtype=torch.float32)
    return {
        "hidden_states": torch.randn(4, 16, 64, generator=generator),
        "timestep": timestep,
        "guidance": torch.full_like(timestep, 3.5),
        "encoder_hidden_states": torch.cat([text, text]),
        "pooled_projections": torch.cat([pooled, pooled]),
        "img_ids": image_position_ids(4, 4),
        "txt_ids": io["in.txt_ids"][0],
    }


def sampling(io: dict[str, torch.Tensor], task: str, pairs: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, pairs, 16, 64, generator=generator)
    condition = io["in.cond_packed_image" if task == "depth" else "in.cond_packed_depth"]
    return {
        "task": task,
        "noise": tuple(noise),
        "condition": condition.expand(pairs, -1, -1) * torch.linspace(1, 0.5, pairs)[:, None, None],
        "prompt_embeds": io["in.txt"][:1].expand(pairs, -1, -1),
        "pooled_prompt_embeds": io["in.y"][:1].expand(pairs, -1),
        "img_ids": image_position_ids(4, 4),
        "txt_ids": io["in.txt_ids"][0],
        "num_inference_steps": 5,
    }


@torch.no_grad()
@pytest.mark.parametrize("given", ["rgb", "depth"])
@pytest.mark.parametrize("masked", [False, True])
def test_half_a_forward_is_the_whole_one_where_nothing_changed(golden, given, masked):
    model, io = golden.network(), golden.tensors("sample_a")
    inputs = forward_inputs(io, given, 0.7)
    if masked:
        mask = torch.ones(inputs["encoder_hidden_states"].shape[:2])
        mask[1::2, -3:] = 0
        inputs["encoder_attention_mask"] = mask
    plain = model(**inputs).sample
    cache = ConditionCache(given)
    assert torch.equal(model(**inputs, condition_cache=cache).sample, plain)
    cache.reuse = True
    with operation_counter() as half:
        again = model(**inputs, condition_cache=cache).sample
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=0)
    with operation_counter() as whole:
        model(**inputs)
    assert half.get_total_flops() < 0.55 * whole.get_total_flops()
    # What it runs between refreshes is the generated half: the given half's latents no longer count.
    rows = slice(0, 2) if given == "rgb" else slice(2, 4)
    inputs["hidden_states"][rows] = 0
    assert torch.equal(model(**inputs, condition_cache=cache).sample, again)
    assert not torch.allclose(model(**inputs).sample, plain, atol=1e-3, rtol=0), "the adapter is whole again"


@torch.no_grad()
@pytest.mark.parametrize("given", ["rgb", "depth"])
def test_weights_that_come_to_each_layer_as_it_is_called_give_the_same(golden, given):
    """Sequential offload: outside of a layer's own call its weights are on the meta device."""
    model, io = golden.network(), golden.tensors("sample_a")
    inputs = forward_inputs(io, given, 0.7)

    def whole_and_half():
        cache = ConditionCache(given)
        whole = model(**inputs, condition_cache=cache).sample
        cache.reuse = True
        return whole, model(**inputs, condition_cache=cache).sample

    plain = whole_and_half()
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for found, expected in zip(whole_and_half(), plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", list(TASKS))
def test_refreshing_at_every_step_is_exact_and_else_it_counts(golden, task):
    io, model = golden.tensors("sample_a"), golden.network()
    inputs = sampling(io, task)
    exact = torch.cat(denoise(model, **inputs))
    assert torch.equal(torch.cat(denoise(model, **inputs, condition_refresh=1)), exact)
    kept = {k: torch.cat(denoise(model, **inputs, condition_refresh=k)) for k in (2, 5, 9)}
    assert not torch.allclose(kept[2], exact, atol=1e-4, rtol=0)
    assert not torch.allclose(kept[2], kept[5], atol=1e-4, rtol=0)
    assert torch.equal(kept[5], kept[9]), "both refresh in the first of five steps alone"
    assert torch.equal(torch.cat(denoise(model, **inputs, condition_refresh=2)), kept[2])
    # Where nothing flows between the halves there is nothing to refresh.
    apart = golden.network(adapter=False)
    whole, once = (torch.cat(denoise(apart, **inputs, condition_refresh=k)) for k in (1, 5))
    torch.testing.assert_close(once, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_sample_is_the_same_alone_and_in_a_batch(golden, task):
    io, model = golden.tensors("sample_a"), golden.network()
    batch = sampling(io, task, pairs=3)
    together = torch.cat(denoise(model, **batch, condition_refresh=3)).unflatten(0, (2, 3))
    for index in range(3):
        row = slice(index, index + 1)
        alone = {name: batch[name][row] for name in ("condition", "prompt_embeds", "pooled_prompt_embeds")}
        alone["noise"] = tuple(noise[row] for noise in batch["noise"])
        one = torch.cat(denoise(model, **{**batch, **alone}, condition_refresh=3))
        torch.testing.assert_close(one, together[:, index], atol=1e-5, rtol=0)


def test_wrong_values_are_named(golden):
    io, model = golden.tensors("sample_a"), golden.network()
    with pytest.raises(InputError, match="condition_refresh is 0: give at least 1"):
        denoise(model, **sampling(io, "depth"), condition_refresh=0)
    joint = {**sampling(io, "depth"), "task": "joint", "condition": None}
    with pytest.raises(InputError, match="condition_refresh is 2, and task 'joint' has no clean half"):
        denoise(model, **joint, condition_refresh=2)


@torch.no_grad()
@pytest.mark.parametrize("given", [0, 1])
def test_the_joint_connection_masks_the_keys_of_the_other_half(golden, given):
    """Against attention written out: the queries of a half see the keys of the other that are no padding there."""
    attn = golden.network().transformer_blocks[0].attn
    width, tokens, heads = attn.inner_dim, 5, attn.heads
    attn.joint_proj.weight.data = torch.eye(2 * width)
    attn.joint_proj.bias.data.zero_()
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, tokens, heads, width // heads, generator=generator)
    mask = torch.ones(2, 1, 1, tokens, dtype=torch.bool)
    mask[0, ..., -1], mask[1, ..., :3] = False, False
    condition, generated = KeptAttention(given, 1 - given), 1 - given
    zeros = torch.zeros(2, tokens, width)
    joint = attn.processor.connect(attn, query, key, value, zeros, torch.ones(2), mask, condition)
    for half, other in ((0, 1), (1, 0)):
        scores = torch.einsum("qhd,khd->hqk", query[half], key[other]) * (width // heads) ** -0.5
        weights = scores.masked_fill(~mask[other], -torch.inf).softmax(dim=-1)
        expected = torch.einsum("hqk,khd->qhd", weights, value[other]).flatten(1)
        torch.testing.assert_close(joint[half], expected, atol=1e-5, rtol=0)
    assert condition.mask is not None
    assert torch.equal(condition.mask[0], mask[given]), f"the keys that half {generated} reads between refreshes"


def test_a_cache_of_diffusers_is_not_mixed_with_the_condition_cache(golden):
    model, io = golden.network(), golden.tensors("sample_a")
    model.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    with pytest.raises(InputError, match=r"condition_refresh is 2 and the transformer has a cache of diffusers"):
        denoise(model, **sampling(io, "depth"), condition_refresh=2)
    with pytest.raises(ValueError, match=r"condition_cache and a cache of diffusers mix batches"):
        model(**forward_inputs(io, "rgb", 0.7), condition_cache=ConditionCache("rgb"))
