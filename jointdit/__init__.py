"""JointDiT (ICCV 2025, arXiv 2505.00482): one diffusion transformer for RGB and depth, as a library.

Read the files in this order:

    flow_matching.py     noise levels, schedule, noising, loss: the conventions everything else uses
    depth_lora.py        the LoRA that turns the text-to-image network into a depth branch
    joint_attention.py   the connection between the two branches, and its weights
    transformer.py       the network: both branches as one batch [rgb; depth]
    official.py          published checkpoints <-> ours; official_vae.py: FLUX's autoencoder
    latents.py           images <-> latents <-> tokens; noise by seed
    denoising.py         the one sampling loop of all three tasks
    condition_cache.py   the given half of the network, kept over sampling steps
    pipeline.py          JointDiTPipeline: prompts, images and depth in, RGB and depth out
    pixels.py            what a caller gives it, checked, and its way into and out of the VAE
    base_network.py      the FLUX that an adapter is put on: folder or single file
    checkpoint_files.py  safetensors only, checked by name and shape
    errors.py            what can go wrong

Beside them: depth.py (disparity, metres, points), scenes/ (procedural RGB-D scenes), training/, evaluation/, tiny/ (a
small checkpoint).

The public names load on first use, so that `import jointdit` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jointdit.denoising import denoise
    from jointdit.model.transformer import JointDiTTransformer2DModel
    from jointdit.pipeline import JointDiTOutput, JointDiTPipeline

__all__ = ["JointDiTOutput", "JointDiTPipeline", "JointDiTTransformer2DModel", "denoise"]

# The sampling loop's file is not called denoise.py: the submodule would take the function's place in this package.
_HOME = {
    "JointDiTOutput": "jointdit.pipeline",
    "JointDiTPipeline": "jointdit.pipeline",
    "JointDiTTransformer2DModel": "jointdit.model.transformer",
    "denoise": "jointdit.denoising",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
