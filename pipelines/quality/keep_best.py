"""Keeps the best samples of each row by a score. Decided when a version is published, over all samples of the row."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class KeepBest(BaseModel):
    """At most `k` kept samples a row: those whose score `by` is `order`. A wrong guess keeps the worst: no default.

    Equal scores: the sample planned first. A sample without the score comes last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    k: int = Field(1, ge=1, le=1_000_000)
    by: str
    order: Literal["lowest", "highest"]

    def rank(self, score: float | None) -> float:
        """What samples are sorted by, the best first."""
        if score is None or math.isnan(score):
            return math.inf
        return score if self.order == "lowest" else -score
