"""Offload of weights to the host's memory, by diffusers' names.

    model       one component at a time is on the device: text encoders, transformer, VAE (accelerate's hooks)
    group       one block of the transformer, one layer of the others; a GPU prefetches the next one
    sequential  one layer at a time: the least memory, and by far the slowest

Results do not change. On a CPU `model` and `group` run their hooks and save no memory. `sequential` has no effect on a
CPU, because accelerate cannot move single layers from a CPU to itself.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading

Offload = Literal["model", "group", "sequential"]
HOST = torch.device("cpu")


def place(pipe: DiffusionPipeline, device: torch.device | str, offload: Offload | None = None) -> None:
    """Move a loaded pipeline to a device, or install the hooks that move its components when they are needed."""
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
                # Hooks of blocks run in forward, which the VAE's encode and decode do not call.
                level: dict[str, Any] = (
                    {"offload_type": "block_level", "num_blocks_per_group": 1}
                    if name == "transformer"
                    else {"offload_type": "leaf_level"}
                )
                apply_group_offloading(module, onload_device=device, offload_device=HOST, **level, **streams)
