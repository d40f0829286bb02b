"""Encode pairs of pixels and captions with a pipeline's frozen VAE and text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from jointdit.pixels import disparity_to_vae, image_to_vae
from jointdit.training.pairs import EncodedPair, Pair

if TYPE_CHECKING:
    from jointdit.pipeline import JointDiTPipeline


@torch.no_grad()
def encode_pairs(pipe: JointDiTPipeline, pairs: Sequence[Pair]) -> list[EncodedPair]:
    """Encode pairs of one size to the mode of the VAE's posterior, T5's states and CLIP's pooled output."""
    height, width = pairs[0].rgb.shape[:2]
    rgb = pipe.encode_pixels(image_to_vae(np.stack([pair.rgb for pair in pairs])))
    maps = np.stack([pair.disparity for pair in pairs])
    disparity = pipe.encode_pixels(disparity_to_vae(maps, pipe.depth_transform))
    states, pooled = pipe.encode_prompt([pair.caption for pair in pairs])
    return [EncodedPair(*each, height=height, width=width) for each in zip(rgb, disparity, states, pooled, strict=True)]


def load_encoding_pipeline(name: str, dtype: torch.dtype) -> JointDiTPipeline:
    """Load the VAE and text encoders of a FLUX or JointDiT checkpoint as a pipeline that only encodes.

    Its transformer is a placeholder, one random block of each kind, because the real one takes tens of GB. Disparity is
    encoded without the depth transform of an adapter. Raises ModelError if the checkpoint does not fit.
    """
    from jointdit.loading.official import config_names
    from jointdit.model.transformer import JointDiTTransformer2DModel
    from jointdit.pipeline import JointDiTPipeline, local_checkpoint

    folder = local_checkpoint(name)
    given = FluxTransformer2DModel.load_config(folder / "transformer")
    config = {key: value for key, value in given.items() if key in config_names()}
    network = JointDiTTransformer2DModel(**{**config, "num_layers": 1, "num_single_layers": 1}, lora_ranks=1)
    pipe = JointDiTPipeline.from_pretrained(folder, transformer=network.to(dtype), torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe
