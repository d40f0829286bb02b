"""A training step, forward and backward, beside the plain FLUX on the same rows with as many trained parameters."""

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
TRAINED_IN = (".attn.to_", ".attn.add_", ".ff", ".proj_mlp", ".proj_out")  # Linears that see every token
ALIKE = 0.03  # how far the numbers of trained parameters may lie apart


def measure(settings: Settings) -> Iterator[Line]:
    """One line a number of tokens: ours / theirs over our operations / theirs, both counted with their backward."""
    cores = use_all_cores(settings.quick)
    for tokens in IMAGE_TOKENS[: 1 if settings.quick else None]:
        ours, flux = networks()
        given = inputs(1, tokens)
        target = torch.randn(given["hidden_states"].shape, generator=torch.Generator().manual_seed(3))
        trained = sum(parameter.numel() for parameter in ours.adapter_parameters())
        alike = train_as_many(flux, trained)
        with torch.no_grad():
            check_equal("the velocity", ours(**given).sample, flux(**given).sample)
        fill_adapter(ours)
        counts = (operations(ours, given), operations(flux, given))
        found = take_turns(
            settings, _side(ours, given, target), _side(flux, given, target), SHARES[tokens], pairs=PAIRS[tokens]
        )
        yield over_operations(
            found,
            tokens,
            counts,
            1.1,
            ", by PyTorch's counter (attention's backward without what it computes again)",
            f"trained parameters: {trained:,}, FLUX {alike:,}; one pair, width {width()}, float32, {cores} threads",
        )


def train_as_many(flux: FluxTransformer2DModel, wanted: int) -> int:
    """Train Linears of the blocks, from the first on, until as many parameters as wanted are; returns their number.

    Raises:
        PermanentError: whole Linears do not come near that number.
    """
    flux.requires_grad_(False)
    trained = 0
    for name, module in flux.named_modules():
        size = sum(parameter.numel() for parameter in module.parameters()) if isinstance(module, nn.Linear) else 0
        if size and any(part in f".{name}" for part in TRAINED_IN) and trained + size <= wanted * (1 + ALIKE):
            module.requires_grad_(True)
            trained += size
    if abs(trained / wanted - 1) > ALIKE:
        raise PermanentError(f"FLUX would train {trained} parameters beside {wanted}: choose other Linears.")
    return trained


def operations(model: nn.Module, given: dict[str, Any]) -> int:
    """Of a forward and its backward, counted on tensors without memory."""
    shadow = copy.deepcopy(model).to("meta")
    on_meta = {name: tensor.to("meta") for name, tensor in given.items()}
    with torch.device("meta"), operation_counter() as counter:
        shadow(**on_meta).sample.sum().backward()
    return counter.get_total_flops()


def _side(model: nn.Module, given: dict[str, Any], target: torch.Tensor) -> Side:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        output = model(**given).sample
        return output, torch.autograd.grad(joint_flow_matching_loss(output, target), trained)

    def side() -> Turn:
        seconds, (output, gradients) = timed(step)
        finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
        return Turn(seconds, {"rows": len(output), "velocities": output.numel(), "gradients are finite": finite})

    return side
