"""A PEFT LoRA layer that adapts only the depth half of the batch.

JointDiT uses the text-to-image network as its RGB branch, and the same network with LoRA as its depth branch. Both
branches run as one batch `[rgb x B; depth x B]`. A layer costs one matrix product over 2B rows plus a low-rank product
over the last B rows.

The published adapter has one LoRA per *fused* projection of FLUX (qkv; qkv and MLP in single blocks). diffusers splits
each of these into three or four Linears: B is split too, and all of them use the same A. The first layer of a group
registers A and the others refer to it, so `parameters()`, `state_dict()`, optimizers and savers see it once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import nn
from torch.autograd.function import once_differentiable

from jointdit.errors import ModelError
from jointdit.model.condition_cache import Half

ADAPTER_NAME = "depth"
LORA_SCALE = 0.5  # alpha / rank of every published layer; the adapter file does not store alpha

PAPER_LORA_RANKS: Mapping[str, int] = {
    "blocks": 64,
    "vector_in.in_layer": 512,
    "vector_in.out_layer": 1024,
    "txt_in": 1024,
}


class DepthHalfLora(lora.Linear):
    """LoRA of a Linear that adds `scale * B(A(x))` to the second half of the batch only.

    The base layer runs once over the whole batch and may be quantised. The LoRA cannot be merged into the base
    weights, because the RGB half uses them too.
    """

    only_half: Half | None = None  # set by `only_half_in_batch` while the batch holds this half only

    def __init__(self, base_layer: nn.Module, rank: int) -> None:
        config = LoraConfig(r=rank, lora_alpha=rank * LORA_SCALE)
        super().__init__(base_layer, ADAPTER_NAME, config, r=rank, lora_alpha=rank * LORA_SCALE)
        nn.init.xavier_uniform_(self.lora_A[ADAPTER_NAME].weight)  # as the authors' code; PEFT has zeroed B

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map x (2B, ..., in_features) to (2B, ..., out_features); (B, ...) if the batch holds one half."""
        if self.disable_adapters or self.only_half == "rgb":
            plain: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        lora_a, lora_b = self.lora_A[ADAPTER_NAME], self.lora_B[ADAPTER_NAME]
        rows = x.flatten(0, -2)  # autograd treats a Linear's output of more dimensions as a view, and copies it
        first = 0 if self.only_half == "depth" else rows.shape[0] // 2
        if torch.is_grad_enabled() and x.requires_grad:
            rows, adapted = _AllAndLastRows.apply(rows, first)
        else:
            adapted = rows[first:]
        result: torch.Tensor = self.base_layer(rows, *args, **kwargs)
        low_rank = lora_a(self._cast_input_dtype(adapted, lora_a.weight.dtype))
        b, scale = lora_b.weight, self.scaling[ADAPTER_NAME]
        if low_rank.dtype != lora_a.weight.dtype:  # autocast
            b = b.to(low_rank.dtype)
        # In place on the depth rows, because a concatenation would copy the RGB rows of every layer.
        if low_rank.dtype == b.dtype == result.dtype and b.device == result.device and result.is_contiguous():
            if torch.is_grad_enabled():
                result = _AddToLastRows.apply(result, low_rank, b, scale)
            else:
                _add_to_last_rows(result, low_rank, b, scale)
        else:  # the adapter has a higher precision than the base, or a hook loads weights when the layer is called
            result[first:].add_(lora_b(low_rank), alpha=scale)
        return result.unflatten(0, x.shape[:-1])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ModelError(
            "The depth LoRA cannot be merged, because the RGB half uses the base weights too: keep it as an adapter."
        )


class _AllAndLastRows(torch.autograd.Function):
    """Return x and x[first:]; backward adds the gradient of the rows to that of x in place.

    Autograd would pad the gradient of the rows to the size of x. The change in place is safe: the gradient of x comes
    from the base layer's product, and nothing else refers to it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.first = first
        return x.view_as(x), x[first:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, of_rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient[ctx.first :].add_(of_rows)
        return gradient, None


def _add_to_last_rows(result: torch.Tensor, low_rank: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    """Add scale * low_rank (m, r) @ b (O, r)^T to the last m rows of result (n, O), without a temporary."""
    result[result.shape[0] - low_rank.shape[0] :].addmm_(low_rank, b.t(), alpha=scale)


class _AddToLastRows(torch.autograd.Function):
    """`_add_to_last_rows` with gradients.

    Autograd's own backward through rows that were changed in place copies the whole gradient twice. It does the same
    if `result` is a view, so `result` must be the output of the product itself.
    """

    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, low_rank: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.mark_dirty(result)
        ctx.save_for_backward(low_rank, b)
        ctx.scale = scale
        _add_to_last_rows(result, low_rank, b, scale)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        low_rank, b = ctx.saved_tensors
        rows = gradient[gradient.shape[0] - low_rank.shape[0] :]
        to_low_rank = torch.mm(rows, b).mul_(ctx.scale)
        to_b = torch.mm(low_rank.t(), rows).mul_(ctx.scale).t()
        return gradient, to_low_rank, to_b, None


def share_lora_a(layers: Sequence[DepthHalfLora]) -> None:
    """Make all layers use the A of the first one, which alone registers it."""
    owner = layers[0]
    for layer in layers[1:]:
        assert (layer.in_features, layer.r) == (owner.in_features, owner.r)
        del layer.lora_A
        object.__setattr__(layer, "lora_A", owner.lora_A)


def add_depth_lora(model: nn.Module, groups: Mapping[str, Sequence[str]], ranks: Mapping[str, int]) -> None:
    """Replace the Linears of `model` named in `groups` by DepthHalfLora; the layers of a group share A.

    groups: official (fused) name -> names of the Linears in `model`. ranks: official name -> rank.
    """
    for official_name, names in groups.items():
        layers = []
        for name in names:
            layer = DepthHalfLora(model.get_submodule(name), ranks[official_name])
            model.set_submodule(name, layer)
            layers.append(layer)
        share_lora_a(layers)


@contextlib.contextmanager
def only_half_in_batch(model: nn.Module, half: Half) -> Iterator[None]:
    """Run `model` on a batch of one half, (B, ...), inside this context."""
    layers = [layer for layer in model.modules() if isinstance(layer, DepthHalfLora)]
    for layer in layers:
        layer.only_half = half
    try:
        yield
    finally:
        for layer in layers:
            layer.only_half = None


def expand_lora_ranks(lora_ranks: int | Mapping[str, int] | None, names: Iterable[str]) -> dict[str, int]:
    """Return the rank of each official layer in `names`.

    lora_ranks: None for the paper's ranks, one int for all layers, or a mapping that overrides the paper's: "blocks"
    for all layers in blocks, or an official layer name such as "txt_in" or "double_blocks.0.img_attn.qkv". Raises
    ModelError if a name is unknown or a rank is not positive.
    """
    names = list(names)
    if isinstance(lora_ranks, int):
        given: dict[str, int] = dict.fromkeys(PAPER_LORA_RANKS, lora_ranks)
    else:
        given = {**PAPER_LORA_RANKS, **(lora_ranks or {})}
    for name, rank in given.items():
        if name != "blocks" and name not in names:
            raise ModelError(
                f"lora_ranks names {name!r}, which has no LoRA: use 'blocks' or one of {', '.join(names[:3])}, ..."
            )
        if rank < 1:
            raise ModelError(f"lora_ranks[{name!r}] is {rank}: give a rank of at least 1.")
    return {name: given.get(name, given["blocks"]) for name in names}


def compact_lora_ranks(ranks: Mapping[str, int]) -> dict[str, int]:
    """Invert `expand_lora_ranks` for a config: one entry for the blocks and one for each exception."""
    block_ranks = [rank for name, rank in ranks.items() if "_blocks." in name]
    blocks = max(set(block_ranks), key=block_ranks.count)
    others = {name: rank for name, rank in ranks.items() if "_blocks." not in name or rank != blocks}
    return {"blocks": blocks, **others}
