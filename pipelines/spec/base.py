"""The base class of the sections of a job spec, and types for numbers and text with bounds.

Each number has a lower and an upper bound, so that no value makes a run hang, overflow or lose precision. The bounds
are wide enough for values that mean "never" or "unlimited".
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from jointdit.geometry.depth import MODEL_MULTIPLE as MULTIPLE

LONGEST_SIDE = 8192  # pixels
FLOAT32_MAX = 3.4028236e38


def _multiple_of_16(value: int) -> int:
    if value % MULTIPLE:
        lower = max(MULTIPLE, min(LONGEST_SIDE - MULTIPLE, value // MULTIPLE * MULTIPLE))
        raise ValueError(f"must be a multiple of {MULTIPLE} pixels, found {value}: use {lower} or {lower + MULTIPLE}")
    return value


Pixels = Annotated[
    int, Field(ge=MULTIPLE, le=LONGEST_SIDE), BeforeValidator(lambda v: _multiple_of_16(v) if type(v) is int else v)
]
NEAREST, FARTHEST = 1e-6, 1e9  # metres; float32 can represent them and their ratios
Metres = Annotated[float, Field(ge=NEAREST, le=FARTHEST)]
Ratio = Annotated[float, Field(ge=1e-6, le=1e6)]
Seconds = Annotated[float, Field(ge=0.001, le=1e9)]  # the limit of the system's timers
Amount = Annotated[float, Field(ge=0, le=1e12)]  # money, hours, gigabytes
Name = Annotated[str, Field(max_length=1024)]
Text = Annotated[str, Field(max_length=100_000)]  # the limit of a row's prompt


class Section(BaseModel):
    """A section of a spec: frozen, and an unknown key is an error. Lists, as in YAML and JSON, become tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, data: Any) -> Any:
        return _as_tuples(data)


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
