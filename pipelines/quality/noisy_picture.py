"""Rejects noisy images, from grain to pure noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

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
    looks_at: ClassVar[frozenset[str]] = frozenset({"rgb"})

    max_noise: Levels = 6.0

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        rgb, _ = pixels(result)
        return {"rgb_noise": roughness(luminance(rgb))}

    def reject(self, scores: Mapping[str, Any]) -> str | None:
        if scores["rgb_noise"] <= self.max_noise:
            return None
        return f"noise is {scores['rgb_noise']:.1f} of 255, more than {self.max_noise:g}"
