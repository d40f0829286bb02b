"""Latents of the rendered scenes, encoded once for the transformer's stages."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL

from jointdit.loading.cpu_dtype import autocast_to_bfloat16
from jointdit.model.latents import encode_image, pack_latents
from jointdit.tiny.data import ScenePixels

Modality = Literal["rgb", "disparity"]
ENCODE_BATCH = 64


@torch.inference_mode()
def cached_latents(
    vae: AutoencoderKL,
    scenes: ScenePixels,
    modality: Modality,
    file: Path,
    report: Callable[[str], None],
    mirrored: bool = False,
) -> torch.Tensor:
    """Return packed latents (N, tokens, 64) float16 of one modality, the posterior's mode, cached in `file`.

    They are on the device of the scenes and the VAE. mirrored: append the latents of the mirrored scenes, (2N, tokens,
    64).
    """
    count = len(scenes)
    sides = (False, True) if mirrored else (False,)
    if file.exists():
        stored = np.load(file, allow_pickle=False)
        if len(stored) == count * len(sides):
            return torch.from_numpy(stored).to(scenes.device)
    parts = []
    for side, first in itertools.product(sides, range(0, count, ENCODE_BATCH)):
        window = slice(first, first + ENCODE_BATCH)
        pixels = scenes.images(window) if modality == "rgb" else scenes.disparities(window)
        pixels = pixels.flip(-1) if side else pixels
        with autocast_to_bfloat16(scenes.device):
            parts.append(pack_latents(encode_image(vae, pixels)).half())
        if first // ENCODE_BATCH % 50 == 49:
            report(f"latents: {first + ENCODE_BATCH}/{count} {modality}{', mirrored' if side else ''}")
    latents = torch.cat(parts)
    unfinished = file.with_suffix(".tmp.npy")
    np.save(unfinished, latents.cpu().numpy())
    unfinished.replace(file)
    return latents
