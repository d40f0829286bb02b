"""The training loop of all stages, with atomic checkpoints and exact resume.

A batch depends only on (seed, stage, step), so a resumed run uses the same batches as an uninterrupted one. It is drawn
on the device of the parameters, and a GPU draws other batches than a CPU.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from jointdit.loading.cpu_dtype import autocast_to_bfloat16, fast_dtype, slow_note
from jointdit.tiny.spec import StageSpec
from jointdit.training.adapter_spec import OptimizerSpec
from jointdit.training.checkpoint import NamedParameters, load_training, save_training
from jointdit.training.optimizers import build_optimizer, learning_rate_factor
from jointdit.training.record import Report

LossFunction = Callable[[torch.Generator], torch.Tensor]  # draws its batch where the generator is, returns a scalar

STAGE_SEEDS = {"vae": 1, "base": 2, "joint": 3, "decoder": 4, "guidance": 5}
EMBEDDING = re.compile(r"(token_embedding|position_embedding|shared|relative_attention_bias)\.weight$")


class Progress(NamedTuple):
    """The values of a progress line."""

    step: int
    steps: int
    loss: float
    samples_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        minutes, seconds = divmod(int(self.seconds_left), 60)
        return (
            f"step {self.step}/{self.steps}  loss {self.loss:.5f}  {self.samples_per_second:.1f} samples/s  "
            f"{minutes} min {seconds:02d} s left"
        )


def fit(
    stage: str,
    spec: StageSpec,
    named_parameters: NamedParameters,
    loss_function: LossFunction,
    folder: Path,
    seed: int,
    report: Report,
    every: int = 50,
) -> None:
    """Train the parameters in place, and set them to their moving average at the end.

    Args:
        stage: a key of STAGE_SEEDS; it names the checkpoint and selects the random stream of batches.
        named_parameters: the trained parameters, all on one device; names must be stable between runs.
        folder: of the checkpoint `<stage>.safetensors`; training resumes from an existing one.
        report: receives one line every `every` steps.
    """
    parameters = [parameter for _, parameter in named_parameters]
    device = parameters[0].device
    settings = OptimizerSpec(
        kind=spec.optimizer,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        warmup=spec.warmup,
        decay="cosine",
    )
    tables = [parameter for name, parameter in named_parameters if EMBEDDING.search(name)]
    optimizer = build_optimizer(settings, parameters, tables)
    average = [parameter.detach().clone() for parameter in parameters]
    checkpoint = folder / f"{stage}.safetensors"
    step = load_training(checkpoint, named_parameters, average, optimizer) if checkpoint.exists() else 0
    if step:
        report(f"{stage}: resumes at step {step}")
    if spec.autocast == "bfloat16" and fast_dtype(device) != torch.bfloat16 and step < spec.steps:
        report(f"{stage}: {slow_note(torch.bfloat16)}")
    started, first, losses = time.monotonic(), step, []
    while step < spec.steps:
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * learning_rate_factor(step, spec.steps, settings)
        generator = torch.Generator(device).manual_seed(((seed * 8 + STAGE_SEEDS[stage]) << 32) + step)
        with (
            autocast_to_bfloat16(device, enabled=spec.autocast == "bfloat16"),
            warnings.catch_warnings(),
        ):
            # RMSNorm of a bfloat16 input with a float32 weight is not fused; autocast is faster nevertheless.
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
            loss = loss_function(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec.gradient_clip)
        optimizer.step()
        step += 1
        decay = min(spec.ema, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        losses.append(loss.detach())  # read only when it is reported, to avoid synchronising a GPU in each step
        if step % every == 0 or step == spec.steps:
            mean = torch.stack(losses).double().mean().item()
            rate = (step - first) / (time.monotonic() - started)
            report(f"{stage}: {Progress(step, spec.steps, mean, rate * spec.batch_size, (spec.steps - step) / rate)}")
            losses.clear()
        if step % spec.checkpoint_every == 0 or step == spec.steps:
            save_training(checkpoint, named_parameters, average, optimizer, step)
    with torch.no_grad():
        for parameter, mean_value in zip(parameters, average, strict=True):
            parameter.copy_(mean_value)
