"""A training step beside the plain FLUX with as many trainable parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from jobs.tools.bench.frame import Line, Settings, Side, Turn, timed
from jobs.tools.bench.networks import (
    check_equal,
    fill_adapter,
    inputs,
    networks,
    over_operations,
    take_turns,
    use_all_cores,
    width,
)
from jointdit.errors import PermanentError
from jointdit.flow_matching import joint_flow_matching_loss
from jointdit.profiling.flops import operation_counter

IMAGE_TOKENS = (256, 1024)
SHARES = {256: 0.35, 1024: 0.65}
PAIRS = {256: 40, 1024: 15}  # short turns are noisy
TRAINED_IN = (".attn.to_", ".attn.add_", ".ff", ".proj_mlp", ".proj_out")  # Linears that process every token
TOLERANCE = 0.03  # relative difference between the numbers of trainable parameters


def measure(settings: Settings) -> Iterator[Line]:
    """Yield one line per number of tokens: the ratio of times over the ratio of operations, with backward."""
    cores = use_all_cores(settings.quick)
    for tokens in IMAGE_TOKENS[: 1 if settings.quick else None]:
        ours, flux = networks()
        arguments = inputs(1, tokens)
        target = torch.randn(arguments["hidden_states"].shape, generator=torch.Generator().manual_seed(3))
        trained = sum(parameter.numel() for parameter in ours.adapter_parameters())
        trained_flux = train_as_many(flux, trained)
        with torch.no_grad():
            check_equal("the velocity", ours(**arguments).sample, flux(**arguments).sample)
        fill_adapter(ours)
        counts = (operations(ours, arguments), operations(flux, arguments))
        turns = take_turns(
            settings,
            _side(ours, arguments, target),
            _side(flux, arguments, target),
            SHARES[tokens],
            pairs=PAIRS[tokens],
        )
        yield over_operations(
            turns,
            tokens,
            counts,
            1.1,
            ", by PyTorch's counter (without the recomputation in the backward of attention)",
            f"trainable parameters: {trained:,}, FLUX {trained_flux:,}; one pair, width {width()}, float32, "
            f"{cores} threads",
        )


def train_as_many(flux: FluxTransformer2DModel, parameters: int) -> int:
    """Make Linears trainable, from the first block on, until about `parameters` are; return the number.

    Raises:
        PermanentError: no set of whole Linears comes near that number.
    """
    flux.requires_grad_(False)
    trained = 0
    for name, module in flux.named_modules():
        size = sum(parameter.numel() for parameter in module.parameters()) if isinstance(module, nn.Linear) else 0
        if size and any(part in f".{name}" for part in TRAINED_IN) and trained + size <= parameters * (1 + TOLERANCE):
            module.requires_grad_(True)
            trained += size
    if abs(trained / parameters - 1) > TOLERANCE:
        raise PermanentError(f"FLUX would train {trained} parameters, JointDiT {parameters}: choose other Linears.")
    return trained


def operations(model: nn.Module, arguments: dict[str, Any]) -> int:
    """Count the operations of a forward and its backward on meta tensors."""
    shadow = copy.deepcopy(model).to("meta")
    on_meta = {name: tensor.to("meta") for name, tensor in arguments.items()}
    with torch.device("meta"), operation_counter() as counter:
        shadow(**on_meta).sample.sum().backward()
    return counter.get_total_flops()


def _side(model: nn.Module, arguments: dict[str, Any], target: torch.Tensor) -> Side:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        output = model(**arguments).sample
        return output, torch.autograd.grad(joint_flow_matching_loss(output, target), trained)

    def side() -> Turn:
        seconds, (output, gradients) = timed(step)
        finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
        return Turn(seconds, {"rows": len(output), "velocities": output.numel(), "gradients are finite": finite})

    return side
