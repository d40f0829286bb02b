"""`model.scheduler`: the solver of the sampling loop."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from jointdit.solvers import noise_levels
from pipelines.model.loading import load_pipeline
from pipelines.spec.job import ModelSpec


def test_the_spec_decides_the_scheduler() -> None:
    euler, unipc = (load_pipeline(ModelSpec(scheduler=name), "cpu") for name in ("euler", "unipc"))
    assert type(euler.scheduler) is FlowMatchEulerDiscreteScheduler
    assert type(unipc.scheduler) is UniPCMultistepScheduler
    assert torch.equal(noise_levels(euler.scheduler, 4, 64), noise_levels(unipc.scheduler, 4, 64))
    one, other = (
        pipe("a red sphere", seeds=[1], num_inference_steps=2, height=32, width=32).disparity for pipe in (euler, unipc)
    )
    assert np.abs(one - other).max() > 1e-3
