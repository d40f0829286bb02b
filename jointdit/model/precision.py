"""Precision of float32 computations on GPUs, where TF32 rounds inputs to 10 bits.

PyTorch's default is TF32 for convolutions and full float32 for matrix products. 10 bits are too few for far depth, so
the VAE runs without TF32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def _switches() -> list[Any]:
    """Return PyTorch's settings of convolutions and matrix products; each has `fp32_precision`."""
    backends: Any = torch.backends
    return [backends.cudnn.conv, backends.cuda.matmul]


@contextlib.contextmanager
def without_tf32(enabled: bool = True) -> Iterator[None]:
    """Compute float32 convolutions and matrix products in full precision inside this context, if `enabled`."""
    switches = _switches() if enabled else []
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
