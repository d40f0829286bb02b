"""What the sections of a job spec are made of: their base class, and numbers and texts within bounds.

Every number has two bounds, so that no value makes a run hang, overflow or lose precision. They are wide: what is in
use, and what people write for "never" or "any number", lies inside.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MULTIPLE = 16  # pixels: 8 of the VAE times 2 of the patches
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
NEAREST, FARTHEST = 1e-6, 1e9  # metres: float32 points hold them, and their ratios
Metres = Annotated[float, Field(ge=NEAREST, le=FARTHEST)]
Ratio = Annotated[float, Field(ge=1e-6, le=1e6)]
Seconds = Annotated[float, Field(ge=0.001, le=1e9)]  # timers of the system take no more
Amount = Annotated[float, Field(ge=0, le=1e12)]  # of money, hours, gigabytes
Name = Annotated[str, Field(max_length=1024)]  # also of a folder that gives it
Text = Annotated[str, Field(max_length=100_000)]  # as of a row's prompt


class Section(BaseModel):
    """A part of the spec: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
