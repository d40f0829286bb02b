"""The read task: rows -> samples at the model's size, in parts of at most one batch.

A bad row is quarantined alone. Each file is opened and read once, however many spans of it a shard has.

A shard keeps at most HELD_BYTES of source arrays in memory, whatever the size of its images; finish reads rows beyond
that a second time.

A shard of n samples always gives ceil(n / batch_size) parts, the last of which may be empty, so that the driver can
submit the whole chain before anything is read. Samples are sorted by their size in pixels before they are cut into
parts, so most parts hold one size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import RowError
from jointdit.geometry.depth import SizeMapping, disparity_from_depth, fit_to_model, plan_fit, source_window
from pipelines.ledger.entries import PlannedShard
from pipelines.records import BadRow, Content, Row, RowKey, Sample, SampleResult, Span, merge_adjacent
from pipelines.spec.job import EncodeSpec, PrepareSpec
from pipelines.stages.context import RunContext
from pipelines.stages.readers import read_rows
from pipelines.stages.readers.rows import default_id
from pipelines.stages.row_boundary import explain_row_failure

if TYPE_CHECKING:
    from jointdit.training.pairs import Pair


@dataclass(frozen=True)
class Isolation:
    """How to treat a shard that killed processes. Ids are sample ids."""

    suspects: frozenset[str] = frozenset()  # generated one by one
    poison: frozenset[str] = frozenset()  # quarantined without being generated
    poison_rows: frozenset[tuple[int, int]] = frozenset()  # (span, position) of rows that kill the reader
    unfinishable: frozenset[str] = frozenset()  # these kill the process that scores and encodes them

    def parts(self, samples: int, batch_size: int) -> int:
        """The number of parts of a shard with `samples` samples."""
        suspects = self.suspected(samples)
        return math.ceil((samples - suspects) / batch_size) + suspects

    def suspected(self, samples: int) -> int:
        """The number of parts with one suspect each; these are the last parts of the shard."""
        return min(len(self.suspects), samples)


NO_ISOLATION = Isolation()
HELD_BYTES = 1 << 30  # of source arrays that a shard keeps from read to finish, and that finish holds at once


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a span, and the rows of the input version in which they are read."""

    number: int  # of the span in its shard
    span: Span
    source: Span  # the same rows; of a file that has changed, in its latest version

    def row(self, offset: int) -> Piece:
        """The piece of one row."""
        one = [
            replace(span, start=span.start + offset, stop=span.start + offset + 1) for span in (self.span, self.source)
        ]
        return Piece(self.number, *one)


@dataclass(frozen=True)
class SourceRow:
    """A row as read, with its arrays at the source's size.

    Rows beyond HELD_BYTES of a shard have no arrays, and `again` is the piece from which finish reads them again.
    """

    row: Row
    bytes: int = 0  # of its arrays, also if they were dropped
    again: Piece | None = None


@dataclass(frozen=True)
class ShardRows:
    """The input of finish beside the results of the model."""

    rows: tuple[SourceRow, ...]
    failed: tuple[SampleResult, ...]  # samples of bad and poison rows


@dataclass
class _ReadRow:
    """What reading one row gave."""

    span: int  # index into the spans of the shard
    position: int
    source: SourceRow | None = None  # None if the row is bad
    failed: list[SampleResult] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def read_shard(
    context: RunContext, entry: PlannedShard, isolation: Isolation = NO_ISOLATION
) -> tuple[ShardRows, list[list[Sample]]]:
    """Read a shard. Returns (its rows and the samples that have failed already, parts of samples for the model).

    Raises:
        TransientError, StoreError: a fault of the store, not of a row.
    """
    done: list[_ReadRow] = []
    held = 0
    for piece, row in _rows(context, entry, isolation):
        fitted = _fit(context, row)
        read = _ReadRow(piece.number, row.position)
        for sample in _samples_of(context, entry, row):
            if isinstance(fitted, BadRow):
                read.failed.append(SampleResult(sample, error=fitted.error, traceback=fitted.traceback))
            elif sample.id in isolation.poison:
                error = "the model's process died each time this sample was generated."
                read.failed.append(SampleResult(sample, error=error))
            else:
                light = without_arrays(sample.row)
                read.samples.append(
                    replace(sample, row=light, rgb=fitted.rgb, disparity=fitted.disparity, content=fitted.content)
                )
        if isinstance(row, Row) and isinstance(fitted, Sample):
            size = _source_bytes(row)
            if held + size <= HELD_BYTES:
                held += size
                read.source = SourceRow(row, size)
            else:
                again = piece.row(row.position - piece.span.start)
                read.source = SourceRow(without_arrays(row), size, again)
        done.append(read)
    done.sort(key=lambda read: (read.span, read.position))  # as planned: rows were read file by file
    samples = [sample for read in done for sample in read.samples]
    trusted, suspects = cut_parts(samples, context.spec.model.batch_size, isolation.suspects)
    alone = isolation.suspected(entry.samples)
    suspects += [[] for _ in range(alone - len(suspects))]
    missing = isolation.parts(entry.samples, context.spec.model.batch_size) - len(trusted) - alone
    rows = tuple(read.source for read in done if read.source is not None)
    failed = tuple(result for read in done for result in read.failed)
    return ShardRows(rows, failed), [*trusted, *([] for _ in range(missing)), *suspects]


def sample_seed(job_seed: int, row_id: str, index: int) -> int:
    """63 bits that depend only on the job's seed, the row's id and the sample's index."""
    digest = hashlib.sha256(f"{job_seed}\0{row_id}\0{index}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def cut_parts(
    samples: Sequence[Sample], batch_size: int, suspects: frozenset[str]
) -> tuple[list[list[Sample]], list[list[Sample]]]:
    """Return (parts of at most `batch_size` trusted samples, sorted by size; parts of one suspect each)."""
    trusted = sorted((s for s in samples if s.id not in suspects), key=size_of)  # stable: order of rows within a size
    parts = [trusted[start : start + batch_size] for start in range(0, len(trusted), batch_size)]
    return parts, [[sample] for sample in samples if sample.id in suspects]


def size_of(sample: Sample) -> tuple[int, ...]:
    """Height and width of a sample's arrays in pixels; () if it has none."""
    array = sample.rgb if sample.rgb is not None else sample.disparity
    return () if array is None else array.shape[:2]


def _rows(context: RunContext, entry: PlannedShard, isolation: Isolation) -> Iterator[tuple[Piece, Row | BadRow]]:
    """Yield (piece, row) for each planned row, file by file. Rows that kill the reader are not read again."""
    pieces: list[Piece] = []
    for number, span in enumerate(entry.shard.spans):
        start = span.start
        for position in sorted(position for index, position in isolation.poison_rows if index == number):
            error = "the reader's process died each time this row was read."
            row = BadRow(default_id(span, position), span.uri, position, error, etag=span.etag)
            yield Piece(number, span, span), row
            pieces += _pieces(entry, number, replace(span, start=start, stop=position))
            start = position + 1
        pieces += _pieces(entry, number, replace(span, start=start))
    yield from _read_in_one_pass(context, pieces)


def _pieces(entry: PlannedShard, number: int, span: Span) -> Iterator[Piece]:
    """Cut a part of a span where its rows do not lie together in the version that is read."""
    if not entry.moved:
        yield Piece(number, span, span)
        return
    begun = span.start
    places = [entry.moved.get((span.uri, span.etag, p), (span.etag, p)) for p in range(span.start, span.stop)]
    for offset, (etag, place) in enumerate(places, 1):
        if offset == len(places) or places[offset] != (etag, place + 1):
            part = replace(span, start=begun, stop=span.start + offset)
            yield Piece(number, part, replace(part, etag=etag, start=place + 1 - part.rows, stop=place + 1))
            begun = part.stop


def _read_in_one_pass(context: RunContext, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Row | BadRow]]:
    """Yield (piece, row) for the rows of some pieces, file by file, and in the order of rows within a file."""
    files: dict[tuple[str, str], list[Piece]] = {}
    for piece in pieces:
        if piece.span.rows > 0:
            files.setdefault((piece.source.uri, piece.source.etag), []).append(piece)
    for of_file in files.values():
        of_file.sort(key=lambda piece: piece.source.start)
        file = of_file[0].source
        merged = merge_adjacent(replace(piece.source, relative_path=file.relative_path) for piece in of_file)
        wanted = [range(span.start, span.stop) for span in merged]
        planned = ((piece, position) for piece in of_file for position in range(piece.span.start, piece.span.stop))
        rows = read_rows(file, wanted, context.spec.input, context.spec.reading)
        for (piece, position), row in zip(planned, rows, strict=True):
            has_id = row.id != default_id(file, row.position)
            identifier = row.id if has_id else default_id(piece.span, position)
            yield piece, replace(row, id=identifier, position=position, etag=piece.span.etag)


def _fit(context: RunContext, row: Row | BadRow) -> Sample | BadRow:
    """Bring a row's arrays to the model's size, in a template of its samples; a BadRow if that fails."""
    if isinstance(row, BadRow):
        return row
    template = Sample(id=row.id, row=row, index=0, round=0, seed=0)
    try:
        if isinstance(context.spec, PrepareSpec):
            template.rgb = row.rgb  # a teacher resizes images itself
        elif isinstance(context.spec, EncodeSpec):
            pair = pair_to_encode(context, row)
            template.rgb, template.disparity = pair.rgb, pair.disparity
        elif row.rgb is not None:
            template.rgb, mapping = fit_to_model(row.rgb, context.height, context.width, context.spec.model.resize)
            template.content = _content(mapping)
        elif row.depth is not None:
            template.disparity, mapping = fit_to_model(
                source_disparity(context, row), context.height, context.width, _resize_of_window(context)
            )
            template.content = _content(mapping)
    except Exception as error:  # noqa: BLE001 - the boundary of a row
        return BadRow(row.id, row.uri, row.position, *explain_row_failure(error, "bringing it to the model's size"))
    return template


def _content(mapping: SizeMapping) -> Content:
    return Content(mapping.pad_top, mapping.pad_left, mapping.content_height, mapping.content_width)


def pair_to_encode(context: RunContext, row: Row) -> Pair:
    """Image and disparity at the size of the bucket with the nearest aspect. Raises RowError for a constant map."""
    from jointdit.training.batches import nearest_bucket
    from jointdit.training.pairs import Pair, fit_to_bucket

    assert isinstance(context.spec, EncodeSpec)
    assert context.spec.input.depth is not None
    assert row.rgb is not None
    assert row.depth is not None
    buckets = context.spec.buckets or ((context.height, context.width),)
    disparity = disparity_from_depth(row.depth, row.depth_valid, context.spec.input.depth.kind)
    bucket = buckets[nearest_bucket(row.rgb.shape[:2], buckets)]
    try:
        return fit_to_bucket(Pair(row.rgb, disparity, row.prompt or ""), bucket)
    except ValueError as error:
        raise RowError(f"{error}.") from None


def source_disparity(context: RunContext, row: Row) -> NDArray[np.float32]:
    """The relative disparity of a row's depth map at the source's size; for `crop`, of the window that the model sees.

    Raises:
        RowError: the map has no valid pixel, or is constant.
    """
    assert row.depth is not None
    assert context.spec.input.depth is not None
    mapping = plan_fit(row.depth.shape[0], row.depth.shape[1], context.height, context.width, context.spec.model.resize)
    valid = None if row.depth_valid is None else source_window(row.depth_valid, mapping)
    return disparity_from_depth(source_window(row.depth, mapping), valid, context.spec.input.depth.kind)


def _resize_of_window(context: RunContext) -> Literal["fit", "stretch"]:
    return "fit" if context.spec.model.resize == "fit" else "stretch"  # a cropped window has the aspect of the model


def _samples_of(context: RunContext, entry: PlannedShard, row: Row | BadRow) -> Iterator[Sample]:
    """The samples of one row, with ids and seeds."""
    if isinstance(row, BadRow):
        row = Row(row.id, row.uri, row.position, etag=row.etag, content=row.content)
    for index in entry.indices:
        seed = sample_seed(context.spec.seed, row.id, index)
        yield Sample(id=f"{row.id}/{index}", row=row, index=index, round=entry.shard.round, seed=seed)


def without_arrays(row: Row) -> Row:
    """The row as the worker needs it; its arrays go to finish directly."""
    return replace(row, rgb=None, depth=None, depth_valid=None, rgb_bytes=None)


def _source_bytes(row: Row) -> int:
    arrays = (row.rgb, row.depth, row.depth_valid)
    return sum(array.nbytes for array in arrays if array is not None) + len(row.rgb_bytes or b"")


def read_again(context: RunContext, sources: Iterable[SourceRow]) -> dict[RowKey, Row | BadRow]:
    """Return the rows that are not held, with their arrays, by their keys."""
    pieces = [source.again for source in sources if source.again is not None]
    return {row.key: row for _, row in _read_in_one_pass(context, pieces)}


def cut_by_bytes(rows: ShardRows, results: Sequence[SampleResult]) -> list[list[SampleResult]]:
    """Cut the results, in order, into chunks whose rows have at most HELD_BYTES of source arrays."""
    sizes = {source.row.key: source.bytes for source in rows.rows}
    chunks: list[list[SampleResult]] = []
    left = 0
    for result in results:
        size = sizes.get(result.sample.row.key, 0)
        if not chunks or size > left:
            chunks.append([])
            left = HELD_BYTES
        chunks[-1].append(result)
        left -= size
    return chunks


def try_rows(context: RunContext, entry: PlannedShard, span: int, start: int, stop: int) -> None:
    """Read rows [start, stop) of a span and discard them, to see whether the process survives it."""
    part = replace(entry.shard.spans[span], start=start, stop=stop)
    read_shard(context, replace(entry, shard=replace(entry.shard, spans=(part,))))
