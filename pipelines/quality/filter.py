"""The base class of filters: named scores, and thresholds on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipelines.records import SampleResult

Fraction = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]
SIDE = 512  # pixels; of larger images every n-th pixel is used, so that scores cost about the same at any size


class Limit(NamedTuple):
    """A threshold field of a filter, and the score that it limits."""

    field: str
    score: str

    @property
    def is_lower(self) -> bool:
        """Whether scores below the threshold are rejected, not those above."""
        return self.field.startswith("min_")


class Filter(BaseModel, ABC):
    """A frozen model whose fields are the thresholds. All fields have defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: ClassVar[str]  # name in the spec
    scores: ClassVar[tuple[str, ...]]  # the scores that it measures and uses
    # Threshold -> the score that it bounds, from below (min_...) or above (max_...). None: thresholds and scores
    # correspond in their order.
    bounds: ClassVar[Mapping[str, str] | None] = None
    reasons: ClassVar[tuple[str, ...]] = ()  # for each threshold: a format of (score, threshold, filter=)
    looks_at: ClassVar[frozenset[str]] = frozenset({"prompt", "rgb", "depth"})  # parts of a sample that its scores use

    @staticmethod
    @abstractmethod
    def measure(result: SampleResult) -> dict[str, float]:
        """Return the scores of a sample with pixels, in the order of `scores`, independent of thresholds."""

    @classmethod
    def limits(cls) -> tuple[Limit, ...]:
        """Return the thresholds that bound one score each: fields min_... and max_..., by `bounds`."""
        fields = [name for name in cls.model_fields if name.startswith(("min_", "max_"))]
        if cls.bounds is not None:
            return tuple(Limit(name, cls.bounds[name]) for name in fields if name in cls.bounds)
        return tuple(map(Limit, fields, cls.scores)) if len(fields) == len(cls.scores) else ()

    def reject(self, scores: Mapping[str, Any]) -> str | None:
        """Return a short reason to reject a sample with these scores, or None to keep it. NaN is never kept."""
        for limit, reason in zip(self.limits(), self.reasons, strict=True):
            score, threshold = scores[limit.score], getattr(self, limit.field)
            if not (score >= threshold if limit.is_lower else score <= threshold):
                return reason.format(score, threshold, filter=self)
        return None

    def reject_caption(self, caption: str) -> str | None:
        """Return a short reason to reject this caption, or None to keep it. The caption is stored like the scores."""
        return None


def pixels(result: SampleResult) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return (rgb (h, w, 3), disparity (h, w)) of a sample with pixels, with at most SIDE pixels a side.

    Pixels are dropped and not averaged, so that noise, specks, steps and plateaus keep their values.
    """
    assert result.rgb is not None
    assert result.disparity is not None
    step = -(-max(result.disparity.shape) // SIDE)
    return result.rgb[::step, ::step], result.disparity[::step, ::step]


def luminance(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return luminance (h, w) in 0..255, with the weights of ITU-R BT.601."""
    return rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def roughness(values: NDArray[np.float32]) -> float:
    """Return the standard deviation of white noise in (h, w) values, in their unit, independent of smooth surfaces.

    Immerkaer's 3x3 mask (Fast Noise Variance Estimation, CVIU 64(2), 1996) does not respond to planes. The median of
    its absolute response over 0.6745 (Donoho and Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika
    81(3), 1994) replaces his mean, so edges and textures have no effect if they cover less than half of the image. NaN
    below 3x3 pixels.
    """
    if min(values.shape) < 3:
        return float("nan")
    rows = values[:-2] - 2 * values[1:-1] + values[2:]
    response = np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:])
    return float(np.median(response)) / (6 * 0.6745)
