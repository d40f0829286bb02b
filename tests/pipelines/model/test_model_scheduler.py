"""`model.scheduler`: the solver of the sampling loop, and the files of a checkpoint's own scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from jointdit.errors import SpecError
from jointdit.sampling.solvers import noise_levels
from pipelines.model.fingerprint import check_same, fingerprint_of
from pipelines.model.identity import ModelIdentity
from pipelines.model.loading import load_pipeline
from pipelines.model.weights.selection import select_files
from pipelines.spec.job import ModelSpec, load_spec

MINIMAL = {"task": "joint", "input": {"uri": "prompts.txt"}, "output": {"uri": "out"}}
IDENTITY = ModelIdentity(weights="0" * 64, bytes=1, height=128, width=128)

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


def test_a_scheduler_decides_pixels_and_outputs_of_before_go_on_with_euler() -> None:
    euler, unipc = (load_spec(MINIMAL, [f"model.scheduler={name}"]) for name in ("euler", "unipc"))
    assert fingerprint_of(euler, IDENTITY) == fingerprint_of(load_spec(MINIMAL), IDENTITY)
    assert "model.scheduler" not in fingerprint_of(euler, IDENTITY), "its shards keep their ids"
    with pytest.raises(SpecError, match=r"differs in model.scheduler \(null there, unipc here\)"):
        check_same(fingerprint_of(euler, IDENTITY), fingerprint_of(unipc, IDENTITY), "out")
    with pytest.raises(SpecError, match=r"model\.scheduler must be euler or unipc, found 'ddim'"):
        load_spec(MINIMAL, ["model.scheduler=ddim"])
