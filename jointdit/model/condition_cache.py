"""Keys, values and joint output of the clean half, cached across sampling steps.

In depth estimation the image is clean at every step, in depth-to-image the depth map. The clean half therefore gets
the same latents, noise level and text at every step, and changes only through the joint connection. Between two
refreshes only the generated half runs, B rows instead of 2B, and attends to the cached keys and values.

Shapes: B pairs, L tokens (text then image), N image tokens, H heads, D head width, C = H * D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Half = Literal["rgb", "depth"]
HALVES: tuple[Half, Half] = ("rgb", "depth")  # their order in the batch


@dataclass
class KeptAttention:
    """Cache of one attention layer; a refresh fills it. Halves are 0 for RGB, 1 for depth."""

    given: int
    generated: int
    key: torch.Tensor | None = None  # (B, L, H, D) of the clean half, after QK-norm and RoPE
    value: torch.Tensor | None = None  # (B, L, H, D) of the clean half
    joint: torch.Tensor | None = None  # (B, L, C), its part of the generated half's joint projection, with the bias
    mask: torch.Tensor | None = None  # (B, 1, 1, L) of the clean half's keys, if the text has a mask


class ConditionCache:
    """Cache of the clean half: a forward pass of both halves fills it, passes of the generated half read it.

    given: the clean half, which is the task's input. The sampling loop sets `reuse` before each forward pass. The
    cache holds three tensors (B, L, C) per block: 1.6 GB per pair for FLUX.1-dev in bfloat16 with 512 x 512 pixels
    and 512 text tokens.
    """

    def __init__(self, given: Half) -> None:
        self.given = HALVES.index(given)
        self.generated = 1 - self.given
        self.reuse = False
        self.velocity: torch.Tensor | None = None  # (B, N, in_channels) of the given half
        self._layers: list[KeptAttention] = []

    def layers(self, count: int) -> list[KeptAttention]:
        """Return the cache of each attention layer, new and empty at a refresh."""
        if not self.reuse:
            # New objects: the old tensors are freed, and compiled blocks see one kind of refresh instead of two.
            self._layers = [KeptAttention(self.given, self.generated) for _ in range(count)]
        assert len(self._layers) == count, "a forward of both halves comes first"
        return self._layers

    def generated_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rows of the generated half, (2B, ...) -> (B, ...)."""
        return x.chunk(2)[self.generated]

    def with_given(self, velocity: torch.Tensor) -> torch.Tensor:
        """Add the clean half's velocity of the last refresh: (B, N, in_channels) -> (2B, N, in_channels)."""
        assert self.velocity is not None, "a forward of both halves comes first"
        return torch.cat([velocity, self.velocity] if self.generated == 0 else [self.velocity, velocity])
