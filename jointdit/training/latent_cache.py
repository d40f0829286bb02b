"""Latents of the rendered scenes, encoded once: what the transformer stages train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL

from jointdit.latents import encode_image, pack_latents
from jointdit.training.autoencoder import disparity_tensor, picture_tensor
from jointdit.training.data import RenderedScenes

Modality = Literal["rgb", "disparity"]
ENCODE_BATCH = 64


@torch.inference_mode()
def cached_latents(
    vae: AutoencoderKL, scenes: RenderedScenes, modality: Modality, file: Path, report: Callable[[str], None]
) -> torch.Tensor:
    """Packed latents (N, tokens, 64) float16 of one modality, the posterior's mode; read from `file` if it has them."""
    count = len(scenes.captions)
    if file.exists():
        stored = np.load(file, allow_pickle=False)
        if len(stored) == count:
            return torch.from_numpy(stored)
    parts = []
    for first in range(0, count, ENCODE_BATCH):
        window = slice(first, first + ENCODE_BATCH)
        pixels = picture_tensor(scenes.rgb[window]) if modality == "rgb" else disparity_tensor(scenes.disparity[window])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(pack_latents(encode_image(vae, pixels)).half())
        if first // ENCODE_BATCH % 50 == 49:
            report(f"latents: {first + ENCODE_BATCH}/{count} {modality}")
    latents = torch.cat(parts)
    unfinished = file.with_suffix(".tmp.npy")
    np.save(unfinished, latents.numpy())
    unfinished.replace(file)
    return latents
