"""Optimizers by name, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers.optimization import Adafactor

from jointdit.loading.cpu_dtype import fast_dtype
from jointdit.training.adapter_spec import OptimizerSpec


def build_optimizer(
    spec: OptimizerSpec, parameters: Sequence[torch.nn.Parameter], tables: Sequence[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer of the parameters, each given once. tables: the parameters that are embeddings.

    Adafactor is the one of transformers, without relative steps and scaling by the parameters' size. torch's always
    scales, and would train a LoRA B, which starts at zero, a thousand times slower.
    """
    assert len({id(parameter) for parameter in parameters}) == len(parameters), "give a tied parameter once"
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


class StackedMuon(torch.optim.Muon):
    """torch's Muon with the matrices of one shape stacked, so that it makes few large products.

    It supports the settings of `MuonWithAdamW`: Nesterov momentum and "match_rms_adamw". Products are in bfloat16, as
    in torch's Muon, and in float32 on a CPU that emulates bfloat16.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[Any, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for parameters in alike.values():
                self._update(group, parameters, [p.grad for p in parameters if p.grad is not None])

    def _update(self, group: Mapping[str, Any], parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        """Update parameters of one shape with the algorithm and settings of torch.optim.Muon."""
        buffers: list[torch.Tensor] = []
        for parameter in parameters:
            state = self.state[parameter]
            buffers.append(state.setdefault("momentum_buffer", torch.zeros_like(parameter)))
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        stacked = torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"]))  # Nesterov's
        rows, columns = parameters[0].shape
        flat = stacked.mT if rows > columns else stacked
        orthogonal = newton_schulz(flat.to(fast_dtype(flat.device)), group)
        steps = (orthogonal.mT if rows > columns else orthogonal).to(parameters[0].dtype)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        rate = 0.2 * math.sqrt(max(rows, columns))  # adjust_lr_fn "match_rms_adamw"
        torch._foreach_add_(parameters, list(steps.unbind()), alpha=-group["lr"] * rate)


def newton_schulz(matrices: torch.Tensor, settings: Mapping[str, Any]) -> torch.Tensor:
    """Approximate the orthogonal factor of each of K matrices (K, rows, columns), rows <= columns.

    settings: `ns_coefficients`, `ns_steps` and `eps` of torch.optim.Muon.
    """
    a, b, c = settings["ns_coefficients"]
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=settings["eps"])
    for _ in range(settings["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for other parameters, embeddings included, as one optimizer.

    Muon orthogonalises the update of a matrix (Jordan et al., 2024) and scales it to the size of an AdamW update (Liu
    et al., arXiv 2502.16982), so both use one learning rate. On the tiny model, 150 steps from a trained adapter with
    the same batches and learning rate 3e-3 gave a loss of .222, and AdamW .241 (measured).
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
            muon = StackedMuon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, betas=betas))
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:
            part.state = self.state  # one state for checkpoints

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        for part in self._parts:
            part.step()


def learning_rate_factor(step: int, steps: int, spec: OptimizerSpec) -> float:
    """Return the factor of the learning rate at a step from 0: linear warm-up, then constant or decay to `final`."""
    if step < spec.warmup:
        return (step + 1) / spec.warmup
    if spec.decay == "constant":
        return 1.0
    progress = min((step - spec.warmup) / max(steps - spec.warmup, 1), 1.0)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if spec.decay == "cosine" else 1 - progress
    return spec.final + (1 - spec.final) * left
