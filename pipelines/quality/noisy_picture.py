"""Rejects noisy images, from grain to pure noise."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pipelines.quality.filter import Filter, luminance, pixels, roughness
from pipelines.records import SampleResult

Levels = Annotated[float, Field(ge=0, le=255)]


class NoisyPicture(Filter):
    """rgb_noise: standard deviation of white noise in the luminance, of 255 (see `roughness`).

    Noise that is independent in the channels is 1.5 times as large in each of them. Fine texture on more than half of
    an image counts as noise.
    """

    kind: ClassVar[str] = "noisy_picture"
    scores: ClassVar[tuple[str, ...]] = ("rgb_noise",)
    reasons: ClassVar[tuple[str, ...]] = ("noise is {0:.1f} of 255, more than {1:g}",)
    looks_at: ClassVar[frozenset[str]] = frozenset({"rgb"})

    max_noise: Levels = 6.0

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        rgb, _ = pixels(result)
        return {"rgb_noise": roughness(luminance(rgb))}
