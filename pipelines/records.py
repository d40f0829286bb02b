"""The records that flow through a run, from a listed file to an encoded sample.

    SourceFile -> Span -> Shard      what the plan holds (no pixels)
    Row | BadRow                     what a reader yields
    Sample                           one thing to generate: a row, an index, its seed, arrays at the model's size
    SampleResult                     a sample after the model: pixels, or the error that quarantines it

Arrays carry their shape in the comment beside the field. `rgb` is uint8, `disparity` float32 in [0, 1], 1 nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.calibration import Calibration


@dataclass(frozen=True)
class SourceFile:
    """One input file as listed. (uri, etag) is an input version: a changed file is a new version."""

    uri: str
    etag: str  # the store's ETag, or a local file's size and mtime_ns
    size_bytes: int
    relative_path: str  # to the non-glob prefix of the spec's uri; the default row id is "<relative_path>:<row number>"


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of one input version."""

    uri: str
    etag: str
    relative_path: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, commit and retry: some spans of rows, in one round of regeneration."""

    id: str
    spans: tuple[Span, ...]
    round: int = 0

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans)


@dataclass(frozen=True)
class Row:
    """One readable input row. What the task does not need is None."""

    id: str
    uri: str
    position: int  # row number in the file, from 0
    prompt: str | None = None
    rgb: NDArray[np.uint8] | None = None  # (H, W, 3) at the source's size
    depth: NDArray[np.float32] | None = None  # (H, W) at the source's size, in the units of input.depth
    depth_valid: NDArray[np.bool_] | None = None  # (H, W) False where the map has a hole
    rgb_bytes: bytes | None = None  # the encoded image as found, for output.rgb: copy without encoding it again


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be read: quarantined alone. `id` is the default id where the id column is unreadable."""

    id: str
    uri: str
    position: int
    error: str  # one sentence
    traceback: str = ""


class Content(NamedTuple):
    """The part of an array at the model's size that is no padding, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass
class Sample:
    """One thing to generate. `id` is "<row id>/<index>"; `seed` depends on job seed, row id and index alone."""

    id: str
    row: Row
    index: int
    round: int
    seed: int
    rgb: NDArray[np.uint8] | None = None  # (h, w, 3) at the model's size
    disparity: NDArray[np.float32] | None = None  # (h, w) at the model's size
    content: Content | None = None  # where in arrays of the model's size the source is; None: everywhere


@dataclass(frozen=True)
class EncodedArrays:
    """What training reads of a pair, float16: packed latents (N, C), T5 states (T, D), CLIP pooled (P)."""

    rgb: NDArray[np.float16]
    disparity: NDArray[np.float16]
    states: NDArray[np.float16]
    pooled: NDArray[np.float16]
    height: int  # pixels
    width: int
    encoders: str  # hash of VAE and text encoders


@dataclass
class SampleResult:
    """A sample after the model, at the model's size until finish restores the source's size."""

    sample: Sample
    rgb: NDArray[np.uint8] | None = None  # (h, w, 3)
    disparity: NDArray[np.float32] | None = None  # (h, w)
    error: str | None = None  # one sentence; set means quarantine
    traceback: str = ""
    scores: dict[str, float] = field(default_factory=dict)  # the worker's, where a model was asked; then all
    reasons: list[str] = field(default_factory=list)  # empty means kept
    encoded: EncodedArrays | None = None  # of task encode, in place of pixels
    caption: str | None = None  # of task prepare, in place of the row's prompt
    calibration: Calibration | None = None  # by output.points.calibrate

    def without_padding(self, array: NDArray[Any]) -> NDArray[Any]:
        """The part of an array (h, w, ...) at the model's size that shows the source."""
        if self.sample.content is None:
            return array
        top, left, height, width = self.sample.content
        return array[top : top + height, left : left + width]
