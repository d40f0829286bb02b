"""Keeps the best samples of each row by a score, when a version is published."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class KeepBest(BaseModel):
    """At most `k` kept samples per row: those with the lowest or highest score `by`. `order` has no default.

    Of equal scores the sample that was planned first wins. A sample without the score comes last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    k: int = Field(1, ge=1, le=1_000_000)
    by: str
    order: Literal["lowest", "highest"]

    def rank(self, score: float | None) -> float:
        """Return the sort key of a score. The best sample has the lowest key."""
        if score is None or math.isnan(score):
            return math.inf
        return score if self.order == "lowest" else -score
