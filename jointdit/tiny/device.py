"""Device of the tiny checkpoint's stages, its attention kernel, and compilation."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from diffusers import FluxTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from jointdit.errors import SpecError
from jointdit.tiny.spec import TrainSpec

RECOMPILE_LIMIT = 64  # all blocks count as one function, and each stage has its own batch size and parameters


def device_of(spec: TrainSpec) -> torch.device:
    """Return the device of a spec. Raises SpecError if it asks for a GPU and there is none."""
    has_gpu = torch.cuda.is_available()
    if spec.device == "cuda" and not has_gpu:
        raise SpecError("device is cuda, and PyTorch finds no GPU: set it to auto or cpu, or check the driver.")
    return torch.device("cuda" if has_gpu and spec.device != "cpu" else "cpu")


def attention_on(device: torch.device) -> AbstractContextManager[None]:
    """Return a context that selects PyTorch's plain attention on a GPU.

    The backward pass of the default attention ended in an illegal memory access with the tiny network's 104 tokens and
    heads of 32 (H100, PyTorch 2.11, batch 1024), compiled or not.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else contextlib.nullcontext()


def compile_blocks(spec: TrainSpec, network: FluxTransformer2DModel) -> None:
    """Compile the blocks at their first call if the spec says so, by default on a GPU."""
    if (network.device.type == "cuda") if spec.compile is None else spec.compile:
        torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
        for block in (*network.transformer_blocks, *network.single_transformer_blocks):
            block.compile(dynamic=False)
