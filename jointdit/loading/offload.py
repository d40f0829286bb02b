"""Weights that wait in the host's memory until they are needed, by diffusers' names.

    model       one component at a time is on the device: text encoders, transformer, VAE (accelerate's hooks)
    group       one block of the transformer, one layer of the others; on a GPU the next one is copied meanwhile
    sequential  one layer at a time: the least memory, and by far the slowest

Results are those of the plain model. On a CPU the hooks of the first two run and save nothing; accelerate has none that
move single layers from a CPU to itself, so there the third is the plain model.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading

Offload = Literal["model", "group", "sequential"]
HOST = torch.device("cpu")


def place(pipe: DiffusionPipeline, device: torch.device | str, offload: Offload | None = None) -> None:
    """Put a loaded pipeline on a device, or let its components come there as they are needed."""
    device = torch.device(device)
    if offload is None or (offload == "sequential" and device == HOST):
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        streams = {"use_stream": device.type == "cuda", "non_blocking": device.type == "cuda"}
        for name, module in pipe.components.items():
            if isinstance(module, torch.nn.Module):
                # The VAE's encode and decode do not pass its forward, which a block's hooks hang on.
                level: dict[str, Any] = (
                    {"offload_type": "block_level", "num_blocks_per_group": 1}
                    if name == "transformer"
                    else {"offload_type": "leaf_level"}
                )
                apply_group_offloading(module, onload_device=device, offload_device=HOST, **level, **streams)
