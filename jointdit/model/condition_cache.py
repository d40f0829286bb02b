"""What a given half of the batch told the other in each attention layer, kept over sampling steps.

In depth estimation the image is clean at every step (in depth-to-image the depth map is), so its half of the network
sees the same latents, noise level and text again and again: it changes through the joint connection alone. Between
refreshes only the generated half runs, B rows instead of 2B, and attends to what was kept.

Shapes: B pairs, L tokens (text then image), H heads, D head width, C = H * D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Half = Literal["rgb", "depth"]
HALVES: tuple[Half, Half] = ("rgb", "depth")  # their order in the batch


@dataclass
class KeptAttention:
    """Of one attention layer: empty at a refresh, which fills it. Halves are 0 RGB, 1 depth."""

    given: int
    generated: int
    key: torch.Tensor | None = None  # (B, L, H, D) of the given half, after QK-norm and RoPE
    value: torch.Tensor | None = None  # (B, L, H, D)
    joint: torch.Tensor | None = None  # (B, L, C), its share of the generated half's joint projection, with the bias


class ConditionCache:
    """Filled by a forward of both halves, read by forwards of the generated half.

    given: the half that is an input and held clean. `reuse` is set by the sampling loop before each forward. It holds
    three tensors of (B, L, C) a block: for FLUX.1-dev in bfloat16, 512 x 512 pixels and 512 text tokens, 1.6 GB a pair.
    """

    def __init__(self, given: Half) -> None:
        self.given = HALVES.index(given)
        self.generated = 1 - self.given
        self.reuse = False
        self.velocity: torch.Tensor | None = None  # (B, N, in_channels) of the given half
        self._layers: list[KeptAttention] = []

    def layers(self, count: int) -> list[KeptAttention]:
        """What each of the network's attention layers reads or, at a refresh, fills."""
        if not self.reuse:
            # New ones: the old are freed, and compiled blocks see one kind of refresh instead of two.
            self._layers = [KeptAttention(self.given, self.generated) for _ in range(count)]
        assert len(self._layers) == count, "a forward of both halves comes first"
        return self._layers

    def generated_of(self, x: torch.Tensor) -> torch.Tensor:
        """(2B, ...) -> (B, ...), the rows that run between refreshes."""
        return x.chunk(2)[self.generated]

    def with_given(self, velocity: torch.Tensor) -> torch.Tensor:
        """(B, N, C) of the generated half -> (2B, N, C); the given half's is that of the last refresh."""
        assert self.velocity is not None, "a forward of both halves comes first"
        return torch.cat([velocity, self.velocity] if self.generated == 0 else [self.velocity, velocity])
