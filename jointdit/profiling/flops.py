"""Floating-point operations of one forward pass of the network, by formula.

A multiply-add counts as two operations. Only matrix products are counted: Linears and attention. Norms, activations and
RoPE are memory-bound and less than 1 % of the total. A test compares the formula with PyTorch's counter.

Shapes: B pairs (2B rows), N image tokens, T text tokens, L = N + T, C = heads * head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jointdit.loading.official import lora_groups
from jointdit.model.depth_lora import expand_lora_ranks

TIME_CHANNELS = 256  # of the sinusoidal embedding of noise level and guidance (diffusers' FLUX)
MLP_RATIO = 4


@dataclass(frozen=True)
class ForwardFlops:
    """The parts of one forward pass, in floating-point operations."""

    linears: int  # of the base network, on both halves
    self_attention: int
    cross_attention: int
    joint_linears: int
    depth_lora: int

    @property
    def flux(self) -> int:
        """Operations of the base network alone on the same 2B rows."""
        return self.linears + self.self_attention

    @property
    def total(self) -> int:
        """Operations of JointDiT's forward pass."""
        return self.flux + self.cross_attention + self.joint_linears + self.depth_lora


def forward_flops(config: Mapping[str, Any], pairs: int, image_tokens: int, text_tokens: int) -> ForwardFlops:
    """Count the operations of one forward pass of JointDiTTransformer2DModel on 2 * `pairs` rows.

    config: the network's, or a plain FLUX's, for which the paper's LoRA ranks are assumed. image_tokens: packed,
    height * width / 256 with FLUX's VAE. A shared LoRA A is counted once per Linear, as it is computed.
    """
    rows, tokens = 2 * pairs, image_tokens + text_tokens
    width = config["num_attention_heads"] * config["attention_head_dim"]
    blocks = config["num_layers"] + config["num_single_layers"]
    ranks = expand_lora_ranks(config.get("lora_ranks"), lora_groups(config["num_layers"], config["num_single_layers"]))
    attention = 2 * rows * 2 * tokens * tokens * width  # queries by keys, and weights by values
    lora = sum(
        ranks[name] * sum(n * (i + o) for n, i, o in layers)
        for name, layers in _lora_layers(config, image_tokens, text_tokens)
    )
    return ForwardFlops(
        linears=2 * rows * _base_linears(config, image_tokens, text_tokens),
        self_attention=blocks * attention,
        cross_attention=blocks * attention,
        joint_linears=2 * pairs * blocks * tokens * (2 * width) ** 2,
        depth_lora=2 * pairs * lora,
    )


def operation_counter() -> FlopCounterMode:
    """Return PyTorch's counter, extended by the product in place that adds the LoRA to the depth rows."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _product_in_place})


def _product_in_place(_: torch.Size, left: torch.Size, right: torch.Size, **options: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _base_linears(config: Mapping[str, Any], image_tokens: int, text_tokens: int) -> int:
    """Count the multiply-adds of all Linears of the base for one row."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    tokens = image_tokens + text_tokens
    square = width * width
    embedded = 2 if config["guidance_embeds"] else 1
    inputs = image_tokens * config["in_channels"] * width + text_tokens * config["joint_attention_dim"] * width
    conditions = embedded * (TIME_CHANNELS * width + square) + config["pooled_projection_dim"] * width + square
    double = 2 * 6 * square + tokens * (4 + 2 * MLP_RATIO) * square  # two modulations; q, k, v, output, MLP
    single = 3 * square + tokens * (3 + MLP_RATIO + 1 + MLP_RATIO) * square  # q, k, v and MLP in; both out
    out_channels = config["out_channels"] or config["in_channels"]
    outputs = 2 * square + image_tokens * width * config["patch_size"] ** 2 * out_channels
    return inputs + conditions + config["num_layers"] * double + config["num_single_layers"] * single + outputs


def _lora_layers(
    config: Mapping[str, Any], image_tokens: int, text_tokens: int
) -> Iterator[tuple[str, list[tuple[int, int, int]]]]:
    """Iterate over official names and (tokens, in features, out features) of their Linears, for one row."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    tokens = image_tokens + text_tokens
    yield "vector_in.in_layer", [(1, config["pooled_projection_dim"], width)]
    yield "vector_in.out_layer", [(1, width, width)]
    yield "txt_in", [(text_tokens, config["joint_attention_dim"], width)]
    for index in range(config["num_layers"]):
        for half, count in (("img", image_tokens), ("txt", text_tokens)):
            yield f"double_blocks.{index}.{half}_mod.lin", [(1, width, 6 * width)]
            yield f"double_blocks.{index}.{half}_attn.qkv", 3 * [(count, width, width)]
            yield f"double_blocks.{index}.{half}_attn.proj", [(count, width, width)]
    for index in range(config["num_single_layers"]):
        yield f"single_blocks.{index}.linear1", [*3 * [(tokens, width, width)], (tokens, width, MLP_RATIO * width)]
        yield f"single_blocks.{index}.modulation.lin", [(1, width, 3 * width)]
