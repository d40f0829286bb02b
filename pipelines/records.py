"""Rows, samples and shards: the records that flow through a run.

    SourceFile -> Span -> Shard      the plan, without pixels
    Row | BadRow                     what a reader yields
    Sample                           the input of the model: a row, an index, a seed, arrays at the model's size
    SampleResult                     the output of the model: pixels, or the error that quarantines the sample

The comment beside an array gives its shape. `rgb` is uint8, `disparity` float32 in [0, 1], where 1 is nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.calibration import Calibration

RowKey = tuple[str, str, int]  # uri, etag, row position


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file as listed. (uri, etag) is an input version: a changed file is a new version."""

    uri: str
    etag: str  # the store's ETag, or a local file's size and mtime_ns
    size_bytes: int
    relative_path: str  # to the part of input.uri before a glob; default row ids are "<relative_path>:<row number>"


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

    @property
    def file(self) -> tuple[str, str, str]:
        """The input version and its relative path."""
        return self.uri, self.etag, self.relative_path


def merge_adjacent(spans: Iterable[Span]) -> list[Span]:
    """Return the spans in their order; a span that begins where the one before it ends becomes part of that one."""
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].file == span.file and merged[-1].stop == span.start:
            merged[-1] = replace(merged[-1], stop=span.stop)
        else:
            merged.append(span)
    return merged


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, commit and retry: spans of rows, in one round of regeneration."""

    id: str
    spans: tuple[Span, ...]
    round: int = 0

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans)


@dataclass(frozen=True)
class Row:
    """One readable input row. Fields that the task does not need are None."""

    id: str
    uri: str
    position: int  # row number in the file, from 0
    prompt: str | None = None
    rgb: NDArray[np.uint8] | None = None  # (H, W, 3) at the source's size
    depth: NDArray[np.float32] | None = None  # (H, W) at the source's size, in the units of input.depth
    depth_valid: NDArray[np.bool_] | None = None  # (H, W), False where the map has a hole
    rgb_bytes: bytes | None = None  # the encoded image as read, for output.rgb: copy without encoding it again
    etag: str = ""  # of the input version that it was planned from; (uri, etag, position) identifies it
    content: str = ""  # hash of what the task reads of it (stages/readers/row_contents.py); empty if that is unknown

    @property
    def key(self) -> RowKey:
        """What identifies the row."""
        return self.uri, self.etag, self.position


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be read; it is quarantined alone. `id` is the default id if the id column is unreadable."""

    id: str
    uri: str
    position: int
    error: str  # one sentence
    traceback: str = ""
    etag: str = ""  # as of a Row
    content: str = ""

    @property
    def key(self) -> RowKey:
        """What identifies the row."""
        return self.uri, self.etag, self.position


class Content(NamedTuple):
    """The part of an array at the model's size that is not padding, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass
class Sample:
    """One sample to generate. `id` is "<row id>/<index>"; `seed` depends only on the job's seed, row id and index."""

    id: str
    row: Row
    index: int
    round: int
    seed: int
    rgb: NDArray[np.uint8] | None = None  # (h, w, 3) at the model's size
    disparity: NDArray[np.float32] | None = None  # (h, w) at the model's size
    content: Content | None = None  # the part of the arrays that shows the source; None: all of it


@dataclass(frozen=True)
class EncodedArrays:
    """An encoded training pair, float16: packed latents (N, C), T5 states (T, D), pooled CLIP embedding (P)."""

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
    error: str | None = None  # one sentence; the sample is quarantined if it is set
    traceback: str = ""
    scores: dict[str, float] = field(default_factory=dict)  # from models on the worker; finish adds all others
    reasons: list[str] = field(default_factory=list)  # of a rejection; empty if the sample is kept
    encoded: EncodedArrays | None = None  # of task encode, instead of pixels
    caption: str | None = None  # of task prepare, instead of the row's prompt
    calibration: Calibration | None = None  # from output.points.calibrate

    def without_padding(self, array: NDArray[Any]) -> NDArray[Any]:
        """The part of an array (h, w, ...) at the model's size that shows the source."""
        if self.sample.content is None:
            return array
        top, left, height, width = self.sample.content
        return array[top : top + height, left : left + width]
