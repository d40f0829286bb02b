"""What every filter is: named scores, and thresholds on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pipelines.records import SampleResult

Fraction = Annotated[float, Field(ge=0, le=1)]


class Filter(BaseModel, ABC):
    """A frozen model whose fields are the thresholds. Every field has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    kind: ClassVar[str]  # its name in the spec
    scores: ClassVar[tuple[str, ...]]  # what it measures, and decides by

    @staticmethod
    @abstractmethod
    def measure(result: SampleResult) -> dict[str, float]:
        """The scores of a sample with pixels, in the order of `scores`. Thresholds play no part."""

    @abstractmethod
    def reject(self, scores: Mapping[str, Any]) -> str | None:
        """What is wrong with a sample of these scores, in a few words; None keeps it. NaN is never kept."""
