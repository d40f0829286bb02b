"""`model.scheduler`: the solver of the sampling loop, and the files of a checkpoint's own scheduler."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from jointdit.solvers import noise_levels
from pipelines.model.loading import load_pipeline
from pipelines.model.weights.selection import select_files
from pipelines.spec.job import ModelSpec

FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "transformer/model.safetensors",
    "vae/model.safetensors",
]


def test_the_spec_decides_the_scheduler() -> None:
    euler, unipc = (load_pipeline(ModelSpec(scheduler=name), "cpu") for name in ("euler", "unipc"))
    assert type(euler.scheduler) is FlowMatchEulerDiscreteScheduler
    assert type(unipc.scheduler) is UniPCMultistepScheduler
    assert torch.equal(noise_levels(euler.scheduler, 4, 64), noise_levels(unipc.scheduler, 4, 64))
    one, other = (
        pipe("a red sphere", seeds=[1], num_inference_steps=2, height=32, width=32).disparity for pipe in (euler, unipc)
    )
    assert np.abs(one - other).max() > 1e-3


def test_a_checkpoint_and_a_base_bring_their_scheduler() -> None:
    assert select_files(FILES, "pipeline", "model.base x") == FILES
