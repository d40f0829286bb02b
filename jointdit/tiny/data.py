"""Rendered scenes on disk, the training data of the tiny checkpoint.

A cache is a folder of `scenes-<first seed>.npz`, each with `rgb` uint8 (N, H, W, 3), `disparity` uint16 (N, H, W) with
65535 nearest, and `caption` (N,) unicode. Files are written under a temporary name and renamed, so they are complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.geometry.depth import disparity_from_depth
from jointdit.scenes import render_scene

SCENES_PER_FILE = 256


class RenderedScenes(NamedTuple):
    """rgb uint8 (N, H, W, 3), disparity uint16 (N, H, W), captions (N)."""

    rgb: NDArray[np.uint8]
    disparity: NDArray[np.uint16]
    captions: list[str]


class ScenePixels:
    """Rendered scenes as tensors on a device. On the CPU they share memory with the arrays."""

    def __init__(self, scenes: RenderedScenes, device: torch.device | str = "cpu") -> None:
        self._rgb = torch.from_numpy(scenes.rgb).to(device)
        self._disparity = torch.from_numpy(scenes.disparity.view(np.int16)).to(device)  # few kernels take uint16

    def __len__(self) -> int:
        return len(self._rgb)

    @property
    def device(self) -> torch.device:
        """The device of the pixels."""
        return self._rgb.device

    def images(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Return images (B, 3, H, W) float32 in [-1, 1]."""
        return self._rgb[index].permute(0, 3, 1, 2).float() / 127.5 - 1

    def disparities(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Return disparities (B, 3, H, W) float32 in [-1, 1], 1 nearest."""
        level = self._disparity[index].to(torch.int32).bitwise_and(0xFFFF).float()
        return (level / 32767.5 - 1)[:, None].repeat(1, 3, 1, 1)


def render_cache(folder: Path, count: int, size: int, processes: int) -> Iterator[int]:
    """Render scenes 0 .. count - 1 into a cache, except for existing files; yields the number of finished scenes.

    Args:
        folder: of the cache; created if missing.
        count: number of scenes, a multiple of 256.
        size: width and height in pixels.
        processes: number of worker processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, count, SCENES_PER_FILE)
    missing = [first for first in firsts if not _file(folder, first).exists()]
    ready = len(firsts) - len(missing)
    yield ready * SCENES_PER_FILE
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(partial(_render_file, folder, size), missing):
            ready += 1
            yield ready * SCENES_PER_FILE


def load_cache(folder: Path, limit: int | None = None) -> RenderedScenes:
    """Load the scenes of a cache in seed order, at most `limit`.

    Raises:
        FileNotFoundError: the folder has no rendered scenes.
    """
    files = sorted(folder.glob("scenes-*.npz"))[: None if limit is None else -(-limit // SCENES_PER_FILE)]
    if not files:
        raise FileNotFoundError(f"{folder} holds no scenes-*.npz: render the cache first.")
    parts = []
    for file in files:
        with np.load(file, allow_pickle=False) as data:
            parts.append((data["rgb"], data["disparity"], data["caption"]))
    rgb, disparity, captions = (np.concatenate(part) for part in zip(*parts, strict=True))
    return RenderedScenes(rgb[:limit], disparity[:limit], [str(text) for text in captions[:limit]])


def _file(folder: Path, first: int) -> Path:
    return folder / f"scenes-{first:08d}.npz"


def _render_file(folder: Path, size: int, first: int) -> None:
    scenes = [render_scene(seed, size, size) for seed in range(first, first + SCENES_PER_FILE)]
    target = _file(folder, first)
    partial_file = target.with_suffix(f".{os.getpid()}.tmp")
    with partial_file.open("wb") as stream:
        np.savez(
            stream,
            rgb=np.stack([scene.rgb for scene in scenes]),
            disparity=np.stack([np.round(disparity_from_depth(s.depth) * 65535).astype(np.uint16) for s in scenes]),
            caption=np.array([scene.caption for scene in scenes]),
        )
    partial_file.replace(target)
