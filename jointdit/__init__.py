"""JointDiT (ICCV 2025, arXiv 2505.00482): a diffusion transformer for RGB and depth.

Read the files in this order:

    flow_matching.py             noise levels, sampling schedule, noising, loss: the conventions of all other files
    model/depth_lora.py          the LoRA that turns the text-to-image network into a depth branch
    model/joint_attention.py     the connection between the two branches, and its weights
    model/transformer.py         the network: both branches as one batch [rgb; depth]
    model/refusals.py            methods of diffusers that would have another effect on it
    model/latents.py             images <-> latents <-> tokens; seeded noise
    sampling/solvers.py          Euler steps, and diffusers' schedulers on each half's noise levels
    denoising.py                 the sampling loop of all three tasks
    model/condition_cache.py     the cache of the clean half between refreshes
    pipeline.py                  JointDiTPipeline: prompts, images and depth in, RGB and depth out
    sampling/                    the steps of a call: inputs, text_encoding, steps, decoding, output
    pixels.py                    accepted forms of images and maps, conversion to and from the VAE's range
    loading/                     safetensors files, published layouts, base networks, quantization, offload
    errors.py                    the library's errors

Other folders: geometry/ (disparity, metres, points), profiling/ (FLOPs, memory), training/ (adapters), evaluation/,
scenes/ (rendered RGB-D scenes) and tiny/ (the small checkpoint in the package, and its recipe).

The public names are imported on first use, so `import jointdit` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jointdit.denoising import denoise
    from jointdit.model.transformer import JointDiTTransformer2DModel
    from jointdit.pipeline import JointDiTPipeline
    from jointdit.sampling.output import JointDiTOutput

__all__ = ["JointDiTOutput", "JointDiTPipeline", "JointDiTTransformer2DModel", "denoise"]

# The sampling loop is in denoising.py: a submodule named denoise would replace the function of that name.
_HOME = {
    "JointDiTOutput": "jointdit.sampling.output",
    "JointDiTPipeline": "jointdit.pipeline",
    "JointDiTTransformer2DModel": "jointdit.model.transformer",
    "denoise": "jointdit.denoising",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
