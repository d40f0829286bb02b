"""Optimisers by name, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.optimization import Adafactor

from jointdit.training.adapter_spec import OptimiserSpec


def build_optimiser(
    spec: OptimiserSpec, parameters: Sequence[torch.nn.Parameter], tables: Sequence[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimiser over the parameters, each given once. `tables`: those of them that are embeddings, no matrices.

    Adafactor is transformers', with relative steps and scaling by the parameters' size switched off. torch's own always
    scales, and would train a LoRA B, which starts at zero, a thousand times slower.
    """
    assert len({id(parameter) for parameter in parameters}) == len(parameters), "a tied parameter must come once"
    if spec.kind == "muon":
        return MuonWithAdamW(parameters, spec.learning_rate, spec.weight_decay, spec.betas, tables)
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


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon for matrices and AdamW for the rest, embeddings among them, as one optimiser.

    Muon makes each update of a matrix orthogonal (Jordan et al., 2024), scaled to the size of an AdamW update (Liu et
    al., arXiv 2502.16982), so one learning rate serves both. On the tiny model, same batches and learning rate 3e-3,
    150 steps from a trained adapter left its loss at .222 where AdamW's was .241 (measured).
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        tables: Sequence[torch.nn.Parameter] = (),
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        rows = {id(parameter) for parameter in tables}
        matrices = [parameter for parameter in parameters if parameter.ndim == 2 and id(parameter) not in rows]
        others = [parameter for parameter in parameters if parameter.ndim != 2 or id(parameter) in rows]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, betas=betas))
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:
            part.state = self.state  # one state, for savers

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; there is no closure to evaluate."""
        assert closure is None
        for part in self._parts:
            part.step()


def learning_rate_factor(step: int, steps: int, spec: OptimiserSpec) -> float:
    """Factor of the learning rate at a step from 0: linear warm-up, then constant, or down to `final` at the end."""
    if step < spec.warmup:
        return (step + 1) / spec.warmup
    if spec.decay == "constant":
        return 1.0
    progress = min((step - spec.warmup) / max(steps - spec.warmup, 1), 1.0)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if spec.decay == "cosine" else 1 - progress
    return spec.final + (1 - spec.final) * left
