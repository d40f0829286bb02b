from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from jointdit.errors import ModelError
from jointdit.loading.official import lora_groups
from jointdit.model.depth_lora import (
    PAPER_LORA_RANKS,
    DepthHalfLora,
    add_depth_lora,
    compact_lora_ranks,
    expand_lora_ranks,
)


def test_only_the_depth_half_is_adapted(golden):
    table = golden.tensors("primitives")
    base = nn.Linear(10, 7)
    base.weight.data, base.bias.data = table["lora.weight"], table["lora.bias"]
    layer = DepthHalfLora(base, rank=4)
    layer.lora_A["depth"].weight.data = table["lora.A"]
    layer.lora_B["depth"].weight.data = table["lora.B"]
    torch.testing.assert_close(layer(table["lora.in"]), table["lora.out"], atol=1e-6, rtol=0)
    assert torch.equal(layer(table["lora.in"])[:2], base(table["lora.in"])[:2])


def test_a_fresh_layer_starts_as_the_base_and_trains():
    layer = DepthHalfLora(nn.Linear(6, 5), rank=2)
    x = torch.randn(4, 3, 6)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert layer.lora_A["depth"].weight.std() > 0.1
    layer(x)[2:].sum().backward()
    assert layer.lora_B["depth"].weight.grad.abs().sum() > 0


def test_a_of_a_fresh_layer_is_drawn_by_xavier_uniform():
    """As in the authors' code: uniform up to sqrt(6 / (in + rank)); PEFT's own bound is 1 / sqrt(in)."""
    torch.manual_seed(0)
    weight = DepthHalfLora(nn.Linear(192, 5), rank=64).lora_A["depth"].weight
    bound = (6 / (192 + 64)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_gradients_are_those_of_the_formula():
    """The in-place update of the depth rows must not disturb autograd."""
    layer = DepthHalfLora(nn.Linear(6, 5), rank=2)
    a, b = layer.lora_A["depth"].weight, layer.lora_B["depth"].weight
    nn.init.normal_(b)
    x = torch.randn(4, 3, 6, requires_grad=True)
    leaves = (x, a, b, layer.base_layer.weight)
    got = torch.autograd.grad(layer(x).sin().sum(), leaves)
    plain = layer.base_layer(x)
    expected_output = torch.cat([plain[:2], plain[2:] + 0.5 * x[2:] @ a.T @ b.T])
    expected = torch.autograd.grad(expected_output.sin().sum(), leaves)
    for ours, formula in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, formula)


@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_is_copied_on_the_way_back(autocast):
    """Autograd copies the whole gradient, twice, where a view was changed in place: CopySlices."""
    layer = DepthHalfLora(nn.Linear(6, 5).requires_grad_(False), rank=2)
    nn.init.normal_(layer.lora_B["depth"].weight)
    x = torch.randn(4, 3, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(x)
    names, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    assert "_AddToLastRowsBackward" in names
    assert not any("CopySlices" in name for name in names)
    leaves = (x, layer.lora_A["depth"].weight, layer.lora_B["depth"].weight)
    got = torch.autograd.grad(output.float().sum(), leaves)
    formula = layer.base_layer(x).sum() + 0.5 * (x[2:] @ leaves[1].T @ leaves[2].T).sum()
    expected = torch.autograd.grad(formula, leaves)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1 if autocast else 1e-5)


def make_shared() -> nn.Module:
    model = nn.ModuleDict({name: nn.Linear(6, 4) for name in "qkv"})
    add_depth_lora(model, {"qkv": ("q", "k", "v")}, {"qkv": 2})
    return model


def test_a_shared_by_a_group_exists_once():
    model = make_shared()
    adapter = [name for name, _ in model.named_parameters() if "lora" in name]
    assert adapter == [
        "q.lora_A.depth.weight",
        "q.lora_B.depth.weight",
        "k.lora_B.depth.weight",
        "v.lora_B.depth.weight",
    ]
    assert [name for name in model.state_dict() if "lora_A" in name] == ["q.lora_A.depth.weight"]
    assert model["v"].lora_A["depth"].weight is model["q"].lora_A["depth"].weight


@pytest.mark.parametrize("change", ["copy", "dtype", "assign"])
def test_a_stays_shared(change):
    model = make_shared()
    if change == "copy":
        model = copy.deepcopy(model)
    elif change == "dtype":
        model = model.to(torch.bfloat16)
    else:
        model.load_state_dict({name: torch.ones_like(t) for name, t in model.state_dict().items()}, assign=True)
    for name in "kv":
        assert model[name].lora_A["depth"].weight is model["q"].lora_A["depth"].weight
    before = [layer.base_layer(torch.ones(2, 6, dtype=model["q"].weight.dtype)) for layer in model.values()]
    nn.init.ones_(model["q"].lora_A["depth"].weight)
    for layer, plain in zip(model.values(), before, strict=True):
        nn.init.ones_(layer.lora_B["depth"].weight)
        moved = layer(torch.ones(2, 6, dtype=model["q"].weight.dtype)) - plain
        torch.testing.assert_close(moved[1], torch.full_like(moved[1], 6.0))  # 0.5 * rank 2 * 6 inputs


def test_merging_is_refused():
    with pytest.raises(ModelError, match="cannot be merged"):
        DepthHalfLora(nn.Linear(6, 5), rank=2).merge()


def test_ranks():
    names = list(lora_groups(2, 3))
    paper = expand_lora_ranks(None, names)
    assert {name: paper[name] for name in names[:3]} == {
        "txt_in": 1024,
        "vector_in.in_layer": 512,
        "vector_in.out_layer": 1024,
    }
    assert {paper[name] for name in names[3:]} == {64}
    assert compact_lora_ranks(paper) == dict(PAPER_LORA_RANKS)
    assert set(expand_lora_ranks(8, names).values()) == {8}
    mixed = expand_lora_ranks({"blocks": 6, "single_blocks.1.linear1": 9}, names)
    assert mixed["single_blocks.1.linear1"] == 9
    assert mixed["single_blocks.0.linear1"] == 6
    assert expand_lora_ranks(compact_lora_ranks(mixed), names) == mixed
    with pytest.raises(ModelError, match="names 'img_in', which has no LoRA"):
        expand_lora_ranks({"img_in": 4}, names)
    with pytest.raises(ModelError, match=r"lora_ranks\['blocks'\] is 0"):
        expand_lora_ranks({"blocks": 0}, names)
