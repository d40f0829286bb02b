"""The finish task: restore sizes, score, filter, encode, write, commit.

It runs on CPU, on any node. Each attempt draws a token here, so that no two attempts share an object name. It writes
its objects under names that contain the token, then tries to create the shard's only commit. An attempt that loses
deletes its own objects and reports the winner. A sample that cannot be scored or encoded is quarantined alone.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa

from jointdit.errors import RowError
from jointdit.geometry.depth import plan_fit, restore_size, source_window
from pipelines.ledger.entries import (
    FOLDERS,
    OUTCOMES,
    Commit,
    Outcome,
    PlannedShard,
    SampleOutcome,
    StoredObject,
    new_token,
    now,
    sha256,
)
from pipelines.ledger.ledger import Ledger
from pipelines.quality import Filter, decide, load_filters, measure
from pipelines.records import BadRow, Row, SampleResult
from pipelines.stages.context import RunContext
from pipelines.stages.read import ShardRows, cut_by_bytes, read_again, source_disparity, without_arrays
from pipelines.stages.readers import VANISHED
from pipelines.stages.row_boundary import explain_row_failure
from pipelines.stages.sinks.geometry import geometry_of, point_cloud
from pipelines.stages.sinks.parquet import encode_samples, table_bytes
from pipelines.stages.sinks.ply import describe, ply_bytes
from pipelines.store.errors import TransientError
from pipelines.store.storage import Storage

WRITERS = 8
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Receipt:
    """The small result of a finished shard, for the driver."""

    shard: str
    token: str
    won: bool  # False if another attempt had committed the shard
    counts: dict[str, int]
    reasons: dict[str, int]  # rejected samples by filter
    bytes: int
    example: str = ""  # a quarantined sample and its error
    has_vanished: bool = False  # whether a file was gone when this attempt read it
    seconds: float = 0.0  # that the winner took before its commit
    write_seconds: float = 0.0  # that this attempt took to write its objects
    commit_seconds: float = 0.0  # that this attempt took to commit


def finish_shard(
    context: RunContext,
    entry: PlannedShard,
    rows: ShardRows,
    *parts: Sequence[SampleResult],
    unfinishable: frozenset[str] = frozenset(),
    run: str = "",
) -> Receipt:
    """Turn a shard's results into objects and its commit.

    unfinishable: ids of samples that are quarantined without being scored or encoded.
    run: the first characters of the token, so that a driver recognizes its own commits even if a receipt was lost.

    Raises:
        TransientError: a fault of the store, CommitFailed and CommitUnknown included. The driver retries.
    """
    started = time.monotonic()
    token = run + new_token()[len(run) :]
    results = _in_order([*rows.failed, *(result for part in parts for result in part)], entry)
    for result in results:
        if result.sample.id in unfinishable:
            result.error = result.error or "the process died each time this sample was scored and encoded."
    written = write_objects(context, f"{entry.shard.id}-{token}", rows, results)
    commit = Commit(
        shard=entry.shard.id,
        token=token,
        objects=tuple(written.objects),
        samples=tuple(_outcomes(entry, results)),
        code=context.code,
        host=socket.gethostname(),
        finished=now(),
        seconds=round(time.monotonic() - started, 3),
    )
    committing = time.monotonic()
    winner = Ledger(context.storage).commit(commit)
    commit_seconds = time.monotonic() - committing
    if winner.token != token:
        _delete(context.storage, written.objects)
    quarantined = [result for result in results if result.error is not None]
    return Receipt(
        shard=entry.shard.id,
        token=winner.token,
        won=winner.token == token,
        counts=winner.counts,
        reasons=dict(Counter(reason.split(":")[0] for s in winner.samples for reason in s.reasons)),
        bytes=sum(stored.bytes for stored in winner.objects),
        example=f"{quarantined[0].sample.id}: {quarantined[0].error}" if quarantined else "",
        has_vanished=any(VANISHED in (result.error or "") for result in quarantined),
        seconds=winner.seconds,
        write_seconds=written.seconds,
        commit_seconds=commit_seconds,
    )


def try_finish(context: RunContext, samples: frozenset[str], rows: ShardRows, *parts: Sequence[SampleResult]) -> None:
    """Score and encode some of a shard's samples and discard the bytes, to see whether the process survives it."""
    results = [result for part in parts for result in part if result.sample.id in samples]
    for chunk in cut_by_bytes(rows, results):
        complete(context, rows, chunk)
        _encode_all(context, chunk, {})
        if context.spec.output.points.as_files:
            for result in chunk:
                if outcome_of(result) == "kept":
                    _encode_points(context, result)
        _drop_arrays(chunk)


def _delete(storage: Storage, objects: Sequence[StoredObject]) -> None:
    """Delete the objects of an attempt that lost. What a failing store keeps is left to garbage collection."""
    for stored in objects:
        try:
            storage.delete(stored.path)
        except TransientError as error:
            logger.warning("%s stays until garbage collection: %s", stored.path, error)


def outcome_of(result: SampleResult) -> Outcome:
    """The outcome of a scored result."""
    if result.error is not None:
        return "quarantined"
    return "rejected" if result.reasons else "kept"


def _in_order(results: Iterable[SampleResult], entry: PlannedShard) -> list[SampleResult]:
    """Sort results by span, row and index; each planned sample occurs exactly once."""
    files = {(span.uri, span.etag): number for number, span in reversed(list(enumerate(entry.shard.spans)))}
    ordered = sorted(results, key=lambda r: (files[r.sample.row.key[:2]], r.sample.row.position, r.sample.index))
    keys = [(r.sample.row.key, r.sample.index) for r in ordered]
    assert len(set(keys)) == len(keys) == entry.samples, f"{len(keys)} results for {entry.samples} samples"
    return ordered


def complete(context: RunContext, rows: ShardRows, results: Sequence[SampleResult]) -> None:
    """Set each result's source row, size, scores and the decision of the filters; or its error."""
    filters = load_filters(context.spec.quality.filters)
    sources = {source.row.key: source for source in rows.rows}
    keys = dict.fromkeys(result.sample.row.key for result in results if result.error is None)
    again = read_again(context, [sources[key] for key in keys])
    for result in results:
        if result.error is None:
            try:
                key = result.sample.row.key
                row = again.get(key, sources[key].row)
                if isinstance(row, BadRow):
                    raise RowError(row.error)
                _complete(context, result, row, filters)
            except Exception as error:  # noqa: BLE001 - the boundary of a row
                _fail(result, error, "scoring it")


def _complete(context: RunContext, result: SampleResult, source: Row, filters: Sequence[Filter]) -> None:
    if result.caption is not None:
        source = replace(source, prompt=result.caption)
    result.sample = replace(result.sample, row=source)
    if result.encoded is not None:
        return
    resize, mapping = context.spec.model.resize, None
    if context.spec.task == "prepare":
        result.rgb = source.rgb
    elif source.rgb is not None:
        assert result.disparity is not None
        mapping = plan_fit(source.rgb.shape[0], source.rgb.shape[1], context.height, context.width, resize)
        result.rgb = source_window(source.rgb, mapping)
        result.disparity = restore_size(result.disparity, mapping)
    elif source.depth is not None:
        assert result.rgb is not None
        mapping = plan_fit(source.depth.shape[0], source.depth.shape[1], context.height, context.width, resize)
        result.rgb = restore_size(result.rgb, mapping)
        result.disparity = source_disparity(context, source)
    if mapping is not None and result.calibration is not None and result.calibration.focal_pixels is not None:
        focal = result.calibration.focal_pixels / mapping.scale_y  # in pixels of the source
        result.calibration = replace(result.calibration, focal_pixels=focal)
    result.scores = {**result.scores, **measure(result)}
    result.reasons = decide(filters, result.scores, source.prompt)


def _fail(result: SampleResult, error: Exception, action: str) -> None:
    result.error, result.traceback = explain_row_failure(error, action)


class Written(NamedTuple):
    """Objects that were written, and the seconds that making point clouds and writing took."""

    objects: list[StoredObject]
    seconds: float


def write_objects(context: RunContext, attempt: str, rows: ShardRows, results: Sequence[SampleResult]) -> Written:
    """Complete an attempt's results, and write its point clouds and tables under names that contain `attempt`.

    Results are handled in chunks, so that few arrays at the source's size are in memory at once; each result loses
    its arrays when it is encoded.
    """
    objects: list[StoredObject] = []
    seconds = 0.0
    encoded: dict[Outcome, list[Encoded]] = {outcome: [] for outcome in OUTCOMES}
    chunks, first = cut_by_bytes(rows, results), 0
    for chunk in chunks:
        complete(context, rows, chunk)
        tables, points = _write_chunk(context, attempt, first, chunk)
        objects += points.objects
        seconds += points.seconds
        for outcome, part in tables.items():
            encoded[outcome].append(part if len(chunks) == 1 else part._replace(data=b""))
        first += len(chunk)
        _drop_arrays(chunk)
    started = time.monotonic()
    for outcome, parts in encoded.items():
        if parts:
            data = parts[0].data or table_bytes(pa.concat_tables([part.table for part in parts]))
            name = f"{FOLDERS[outcome]}/{attempt}.parquet"
            context.storage.write_bytes(name, data)
            objects.append(StoredObject(name, len(data), sha256(data), sum(part.rows for part in parts), outcome))
    return Written(objects, seconds + time.monotonic() - started)


def _write_chunk(
    context: RunContext, attempt: str, first: int, results: Sequence[SampleResult]
) -> tuple[dict[Outcome, Encoded], Written]:
    """Encode complete results and write their point clouds; `first` is the number of the first result.

    A sample that cannot be encoded must have no point cloud, and one without a point cloud must not be kept. So tables
    are encoded first, and again if a point cloud failed.
    """
    names: dict[str, str] = {}  # sample id -> point cloud
    if context.spec.output.points.as_files:
        for number, result in enumerate(results, first):
            if outcome_of(result) == "kept":
                names[result.sample.id] = f"pointclouds/{attempt}/{number:05d}.ply"
    tables = _encode_all(context, results, names)
    kept = [result for result in results if names and outcome_of(result) == "kept"]
    if not kept:
        return tables, Written([], 0.0)
    started = time.monotonic()
    with ThreadPoolExecutor(WRITERS) as pool:
        made = list(pool.map(lambda result: _write_points(context, names[result.sample.id], result), kept))
    seconds = time.monotonic() - started
    objects = [stored for stored in made if stored is not None]
    if len(objects) < len(kept):
        tables = _encode_all(context, results, names)
    return tables, Written(objects, seconds)


def _drop_arrays(results: Iterable[SampleResult]) -> None:
    """Drop the arrays of results that are encoded."""
    for result in results:
        result.rgb = result.disparity = None
        result.sample = replace(result.sample, row=without_arrays(result.sample.row))


class Encoded(NamedTuple):
    """Samples of one outcome."""

    rows: int
    table: pa.Table
    data: bytes  # the table as a Parquet file


def _encode_all(
    context: RunContext, results: Sequence[SampleResult], pointclouds: Mapping[str, str]
) -> dict[Outcome, Encoded]:
    """Encode the samples by outcome. A sample that cannot be encoded joins the quarantined ones, which come last."""
    tables: dict[Outcome, Encoded] = {}
    for outcome in OUTCOMES:
        chosen = [result for result in results if outcome_of(result) == outcome]
        if not chosen:
            continue
        try:
            tables[outcome] = _encode(context, chosen, outcome, pointclouds)
        except TransientError:
            raise
        except Exception:
            if outcome == "quarantined" or not _isolate(context, chosen, outcome, pointclouds):
                raise  # the error is not about one row
            chosen = [result for result in chosen if result.error is None]
            if chosen:
                tables[outcome] = _encode(context, chosen, outcome, pointclouds)
    return tables


def _encode(
    context: RunContext, chosen: Sequence[SampleResult], outcome: Outcome, pointclouds: Mapping[str, str]
) -> Encoded:
    table = encode_samples(chosen, context.spec, outcome, pointclouds)
    return Encoded(len(chosen), table, table_bytes(table))


def _isolate(
    context: RunContext, chosen: Sequence[SampleResult], outcome: Outcome, pointclouds: Mapping[str, str]
) -> int:
    """Encode samples one by one and set the error of those that fail; returns how many did."""
    for result in chosen:
        try:
            table_bytes(encode_samples([result], context.spec, outcome, pointclouds))
        except Exception as error:  # noqa: BLE001 - the boundary of a row
            _fail(result, error, "encoding it")
    return sum(result.error is not None for result in chosen)


def _write_points(context: RunContext, name: str, result: SampleResult) -> StoredObject | None:
    """Write a sample's point cloud. If it cannot be made, set the sample's error and return None."""
    try:
        points, data = _encode_points(context, result)
    except Exception as error:  # noqa: BLE001 - the boundary of a row
        _fail(result, error, "making its point cloud")
        return None
    context.storage.write_bytes(name, data)
    return StoredObject(name, len(data), sha256(data), points, "kept", "points")


def _encode_points(context: RunContext, result: SampleResult) -> tuple[int, bytes]:
    """(points, PLY file) of a sample."""
    geometry, points = geometry_of(result, context.spec), context.spec.output.points
    cloud = point_cloud(result, geometry, points)
    return len(cloud), ply_bytes(cloud, describe(result.sample.id, geometry, points))


def _outcomes(entry: PlannedShard, results: Sequence[SampleResult]) -> Iterable[SampleOutcome]:
    spans = {
        (span.uri, span.etag, position): number
        for number, span in enumerate(entry.shard.spans)
        for position in range(span.start, span.stop)
    }
    for result in results:
        yield SampleOutcome(
            id=result.sample.id,
            span=spans[result.sample.row.key],
            position=result.sample.row.position,
            index=result.sample.index,
            outcome=outcome_of(result),
            reasons=tuple(result.reasons),
            content=result.sample.row.content,
        )
