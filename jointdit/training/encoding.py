"""Pairs of pixels and captions -> latents and text embeddings, by a pipeline's frozen VAE and text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from jointdit.pixels import disparity_to_vae, image_to_vae
from jointdit.training.pairs import EncodedPair, Pair

if TYPE_CHECKING:
    from jointdit.pipeline import JointDiTPipeline


@torch.no_grad()
def encode_pairs(pipe: JointDiTPipeline, pairs: Sequence[Pair]) -> list[EncodedPair]:
    """Encode pairs of one size: the mode of the VAE's posterior, T5's states and CLIP's pooled output."""
    height, width = pairs[0].rgb.shape[:2]
    rgb = pipe.encode_pixels(image_to_vae(np.stack([pair.rgb for pair in pairs])))
    disparity = pipe.encode_pixels(disparity_to_vae(np.stack([pair.disparity for pair in pairs])))
    states, pooled = pipe.encode_prompt([pair.caption for pair in pairs])
    return [EncodedPair(*each, height=height, width=width) for each in zip(rgb, disparity, states, pooled, strict=True)]
