"""Task `encode`: encode pairs to latents and text embeddings once, for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.model.fingerprint import RECIPE
from pipelines.records import EncodedArrays, Sample

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline


def load_encoders(name: str, dtype: Any, device: str, recipe: int = RECIPE) -> JointDiTPipeline:
    """Load a pipeline's VAE and text encoders on a device, without its transformer. Raises ModelError.

    recipe: of the output (fingerprint.py).
    """
    from jointdit.training.encoding import load_encoding_pipeline

    pipe = load_encoding_pipeline(name, dtype).to(device)
    pipe.vae_allow_tf32 = recipe == 1
    return pipe


def encode_samples(pipe: JointDiTPipeline, batch: Sequence[Sample], encoders: str) -> list[EncodedArrays | None]:
    """Encode samples of one size; None for a sample with values that are not finite in 16 bits."""
    from jointdit.training.encoding import encode_pairs
    from jointdit.training.pairs import Pair

    pairs = []
    for sample in batch:
        assert sample.rgb is not None
        assert sample.disparity is not None
        pairs.append(Pair(sample.rgb, sample.disparity, sample.row.prompt or ""))
    arrays: list[EncodedArrays | None] = []
    for pair in encode_pairs(pipe, pairs):
        with np.errstate(over="ignore"):
            rgb, disparity, states, pooled = (
                tensor.float().cpu().numpy().astype(np.float16)
                for tensor in (pair.rgb, pair.disparity, pair.states, pair.pooled)
            )
        encoded = EncodedArrays(rgb, disparity, states, pooled, pair.height, pair.width, encoders)
        whole = all(np.isfinite(array).all() for array in (rgb, disparity, states, pooled))
        arrays.append(encoded if whole else None)
    return arrays
