"""Read a few rows of each kind of input, so that unusable input is found before a GPU is held.

A kind is a format of tables, or a folder of images or depth maps. Of a format the first rows of its first file and of a
later one are read, or the first ones and some in the middle of its only file; of a folder some files that are spread
over it. They are read as the rows of a shard, up to the size of the model.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from jointdit.errors import InputError
from pipelines.ledger.entries import PlannedShard
from pipelines.records import Shard, SourceFile, Span
from pipelines.stages.context import RunContext
from pipelines.stages.read import read_shard
from pipelines.stages.readers import FORMATS, suffix_of
from pipelines.store.safe_text import shortened

MOST_ROWS = 16
MOST_KINDS = 8  # of more kinds, some that are spread over them
ROWS_OF_ONE_KIND = 8
SECONDS = 5.0  # after this time no further file is read, except the first of each kind
INDEXED = FORMATS.keys() - {".parquet"}  # formats whose rows are found by reading the whole file
Item = TypeVar("Item")
File = TypeVar("File", SourceFile, Span)


@dataclass(frozen=True)
class KindSample:
    """The sampled rows of one kind of input."""

    kind: str  # ".jsonl files", "images in /data/photos"
    rows: int = 0
    failed: int = 0  # rows that a run would quarantine
    reason: str = ""  # file, position and error of the first of them; empty if there is none
    bytes: int = 0  # of the other rows, decoded at the source's size
    pixels: int = 0  # of the images or depth maps of these rows


@dataclass(frozen=True)
class InputSample:
    """The sampled rows of an input."""

    kinds: tuple[KindSample, ...] = ()
    all_kinds: int = 0  # also those of which no row was read

    @property
    def rows(self) -> int:
        """The number of sampled rows."""
        return sum(kind.rows for kind in self.kinds)

    @property
    def failed(self) -> int:
        """The number of sampled rows that a run would quarantine."""
        return sum(kind.failed for kind in self.kinds)

    @property
    def reason(self) -> str:
        """File, position and error of the first of these rows; empty if there is none."""
        return next((kind.reason for kind in self.kinds if kind.reason), "")

    @property
    def row_bytes(self) -> float:
        """The mean bytes of a row that can be read, decoded at the source's size; 0 without such a row."""
        return sum(kind.bytes for kind in self.kinds) / max(1, self.rows - self.failed)

    @property
    def row_pixels(self) -> float:
        """The mean pixels of the image or depth map of such a row; 0 without one."""
        return sum(kind.pixels for kind in self.kinds) / max(1, self.rows - self.failed)

    def check(self) -> None:
        """Raise InputError where all of several sampled rows of a kind fail, or all sampled rows of the input."""
        for kind in self.kinds:
            if kind.failed and kind.failed == kind.rows and (kind.rows > 1 or self.failed == self.rows):
                number = "the only sampled row" if kind.rows == 1 else f"all {kind.rows} sampled rows"
                raise InputError(
                    f"input.uri: {number} of {kind.kind} would be quarantined, such as {kind.reason}: correct "
                    "input.columns or these files, or set quality.max_quarantined_fraction to 1.0 to go on."
                )


NO_SAMPLE = InputSample()


def sample_files(context: RunContext, files: Sequence[SourceFile], count: Callable[[SourceFile], int]) -> InputSample:
    """Read a few rows of listed files. `count` returns the number of rows of a file.

    Raises:
        TransientError, StoreError: the store fails. What `count` raises.
    """
    return _sample(context, files, lambda file: Span(file.uri, file.etag, file.relative_path, 0, count(file)))


def sample_planned(context: RunContext, spans: Iterable[Span]) -> InputSample:
    """Read a few planned rows, except of formats whose rows are found only by reading the whole file.

    Raises:
        TransientError, StoreError: the store fails.
    """
    readable = [span for span in spans if span.rows and suffix_of(span.uri) not in INDEXED]
    return _sample(context, readable, lambda span: span)


def _sample(context: RunContext, files: Sequence[File], rows_of: Callable[[File], Span]) -> InputSample:
    kinds: dict[str, list[File]] = {}
    for file in files:
        kinds.setdefault(_kind_of(file), []).append(file)
    chosen = _spread(list(kinds), MOST_KINDS)
    most = min(ROWS_OF_ONE_KIND, MOST_ROWS // max(1, len(chosen)))
    end = time.monotonic() + SECONDS
    samples = []
    for kind in chosen:
        places = _spread(kinds[kind], 2 if suffix_of(kinds[kind][0].uri) in FORMATS else most)
        read = KindSample(_name_of(kind, context.spec.reading))
        for number, file in enumerate(places):
            if number == 0 or time.monotonic() < end:
                spans = _halves(rows_of(file)) if len(places) == 1 else [rows_of(file)]
                for span in spans:
                    read = _with_first_rows(read, context, span, max(1, most // (len(places) * len(spans))))
        samples.append(read)
    return InputSample(tuple(samples), len(kinds))


def _kind_of(file: SourceFile | Span) -> str:
    """Return the suffix of a table, or the folder of a single file."""
    suffix = suffix_of(file.uri)
    return suffix if suffix in FORMATS else posixpath.dirname(file.uri)


def _name_of(kind: str, reading: str) -> str:
    if kind in FORMATS:
        return f"{kind} files"
    return f"{'depth maps' if reading == 'depth-to-image' else 'images'} in {shortened(kind)}"


def _halves(span: Span) -> list[Span]:
    """Cut the rows of a table in two where reading from the middle does not mean reading what comes before."""
    if suffix_of(span.uri) not in INDEXED:
        return [span]
    middle = (span.start + span.stop) // 2
    return [replace(span, stop=middle), replace(span, start=middle)]


def _with_first_rows(sample: KindSample, context: RunContext, span: Span, most: int) -> KindSample:
    """Return the sample with the first rows of a span added, at most `most`."""
    span = replace(span, stop=min(span.stop, span.start + most))
    read, _ = read_shard(context, PlannedShard(Shard("", (span,)), 1, 0, 0))
    reason = sample.reason
    if read.failed and not reason:
        first = read.failed[0]
        place = f"{shortened(span.relative_path)}:{first.sample.row.position}"
        reason = f"{place} ({(first.error or '').rstrip('.')})"
    arrays = [source.row.depth if source.row.rgb is None else source.row.rgb for source in read.rows]
    return KindSample(
        kind=sample.kind,
        rows=sample.rows + span.rows,
        failed=sample.failed + len(read.failed),
        reason=reason,
        bytes=sample.bytes + sum(source.bytes for source in read.rows),
        pixels=sample.pixels + sum(array.shape[0] * array.shape[1] for array in arrays if array is not None),
    )


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return the first of some items and others at even distances, in order, at most `most`."""
    count = min(len(items), most)
    return [items[number * len(items) // count] for number in range(count)]
