"""Optimisers by name, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers.optimization import Adafactor

from jointdit.training.adapter_spec import OptimiserSpec


def build_optimiser(spec: OptimiserSpec, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser over the parameters, each given once.

    Adafactor is transformers', with relative steps and scaling by the parameters' size switched off. torch's own always
    scales, and would train a LoRA B, which starts at zero, a thousand times slower.
    """
    assert len({id(parameter) for parameter in parameters}) == len(parameters), "a tied parameter must come once"
    if spec.kind == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=spec.betas)
    return Adafactor(
        parameters,
        lr=spec.learning_rate,
        weight_decay=spec.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


def learning_rate_factor(step: int, steps: int, spec: OptimiserSpec) -> float:
    """Factor of the learning rate at a step from 0: linear warm-up, then constant, or down to `final` at the end."""
    if step < spec.warmup:
        return (step + 1) / spec.warmup
    if spec.decay == "constant":
        return 1.0
    progress = min((step - spec.warmup) / max(steps - spec.warmup, 1), 1.0)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if spec.decay == "cosine" else 1 - progress
    return spec.final + (1 - spec.final) * left
