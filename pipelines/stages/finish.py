"""The last task of a shard: restore sizes, score, filter, encode, write, commit. On any node, on CPU.

An attempt draws its token here, so that no two attempts share a name whoever started them. It writes its objects under
names that carry the token, then tries to become the shard's one commit. Who loses throws its own objects away and
reports the winner. A sample that cannot be scored or encoded is quarantined alone.
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
from pipelines.records import Row, SampleResult
from pipelines.stages.context import RunContext
from pipelines.stages.read import ShardRows, SourceRow, cut_by_bytes, read_again, source_disparity, without_arrays
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
    """What the driver is told of a finished shard; small."""

    shard: str
    token: str
    won: bool  # False: another attempt had committed before
    counts: dict[str, int]
    reasons: dict[str, int]  # of rejects, by filter
    bytes: int
    example: str = ""  # one quarantined sample and why
    seconds: float = 0.0  # of the winner's finish
    write_seconds: float = 0.0  # of this attempt's, in writing objects
    commit_seconds: float = 0.0  # of this attempt's, after that


def finish_shard(
    context: RunContext,
    entry: PlannedShard,
    rows: ShardRows,
    *parts: Sequence[SampleResult],
    unfinishable: frozenset[str] = frozenset(),
    run: str = "",
) -> Receipt:
    """Turn a shard's results into objects and its commit. `unfinishable` samples are quarantined without a try.

    `run` begins the token, so that a driver knows its own commits, also one whose receipt got lost.

    Raises:
        TransientError: the store; CommitFailed and CommitUnknown among them. The shard is tried again.
    """
    started = time.monotonic()
    token = run + new_token()[len(run) :]
    results = _in_order([*rows.failed, *(result for part in parts for result in part)], entry)
    for result in results:
        if result.sample.id in unfinishable:
            result.error = result.error or "the process died each time this sample was scored and encoded."
    writes: list[float] = []
    objects = write_objects(context, entry.shard.id, token, rows, results, writes)
    commit = Commit(
        shard=entry.shard.id,
        token=token,
        objects=tuple(objects),
        samples=tuple(_outcomes(entry, results)),
        code=context.code,
        host=socket.gethostname(),
        finished=now(),
        seconds=round(time.monotonic() - started, 3),
    )
    written = time.monotonic()
    winner = Ledger(context.storage).commit(commit)
    committed = time.monotonic()
    if winner.token != token:
        _throw_away(context.storage, objects)
    bad = next((result for result in results if result.error is not None), None)
    return Receipt(
        shard=entry.shard.id,
        token=winner.token,
        won=winner.token == token,
        counts=winner.counts,
        reasons=dict(Counter(reason.split(":")[0] for s in winner.samples for reason in s.reasons)),
        bytes=sum(stored.bytes for stored in winner.objects),
        example=f"{bad.sample.id}: {bad.error}" if bad else "",
        seconds=winner.seconds,
        write_seconds=sum(writes),
        commit_seconds=committed - written,
    )


def try_finish(context: RunContext, samples: frozenset[str], rows: ShardRows, *parts: Sequence[SampleResult]) -> None:
    """Score and encode some of a shard's samples and throw the bytes away: does the process survive it?"""
    results = [result for part in parts for result in part if result.sample.id in samples]
    for chunk in cut_by_bytes(rows, results):
        complete(context, rows, chunk)
        _encode_all(context, chunk, {})
        if context.spec.output.points.as_files:
            for result in chunk:
                if outcome_of(result) == "kept":
                    _encode_points(context, result)
        _let_go(chunk)


def _throw_away(storage: Storage, objects: Sequence[StoredObject]) -> None:
    """Delete a loser's objects. What a store in trouble keeps of them is garbage, and no reason to try again."""
    for stored in objects:
        try:
            storage.delete(stored.path)
        except TransientError as error:
            logger.warning("%s stays until garbage collection: %s", stored.path, error)


def outcome_of(result: SampleResult) -> Outcome:
    """Where a scored result belongs."""
    if result.error is not None:
        return "quarantined"
    return "rejected" if result.reasons else "kept"


def _in_order(results: Iterable[SampleResult], entry: PlannedShard) -> list[SampleResult]:
    """The results in the order of spans, rows and indices; each planned sample is there exactly once."""
    uris = {span.uri: number for number, span in reversed(list(enumerate(entry.shard.spans)))}
    ordered = sorted(results, key=lambda r: (uris[r.sample.row.uri], r.sample.row.position, r.sample.index))
    keys = [(r.sample.row.uri, r.sample.row.position, r.sample.index) for r in ordered]
    assert len(set(keys)) == len(keys) == entry.samples, f"{len(keys)} results for {entry.samples} samples"
    return ordered


def complete(context: RunContext, rows: ShardRows, results: Iterable[SampleResult]) -> None:
    """Give each result its source row, the source's size, its scores and the filters' decision, or its error."""
    filters = load_filters(context.spec.quality.filters)
    sources = {(source.row.uri, source.row.position): source for source in rows.rows}
    last: tuple[SourceRow, Row] | None = None  # samples of one row follow each other
    for result in results:
        if result.error is None:
            try:
                source = sources[result.sample.row.uri, result.sample.row.position]
                if last is None or last[0] is not source:
                    last = source, read_again(context, source)
                _complete(context, result, last[1], filters)
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
        focal = result.calibration.focal_pixels / mapping.scale_y  # of the source's pixels
        result.calibration = replace(result.calibration, focal_pixels=focal)
    result.scores = {**result.scores, **measure(result)}
    result.reasons = decide(filters, result.scores, source.prompt)


def _fail(result: SampleResult, error: Exception, what: str) -> None:
    result.error, result.traceback = explain_row_failure(error, what)


def write_objects(
    context: RunContext,
    shard: str,
    token: str,
    rows: ShardRows,
    results: Sequence[SampleResult],
    writes: list[float] | None = None,
) -> list[StoredObject]:
    """Complete an attempt's results, and write its point clouds and tables under names of its own.

    It goes chunk by chunk, so that few arrays at the source's size are there at once; each result loses its own.
    `writes` gets the seconds that writing took.
    """
    writes = [] if writes is None else writes
    attempt = f"{shard}-{token}"
    objects: list[StoredObject] = []
    encoded: dict[Outcome, list[Encoded]] = {outcome: [] for outcome in OUTCOMES}
    chunks, first = cut_by_bytes(rows, results), 0
    for chunk in chunks:
        complete(context, rows, chunk)
        tables, points = _write_chunk(context, attempt, first, chunk, writes)
        objects += points
        for outcome, made in tables.items():
            encoded[outcome].append(made if len(chunks) == 1 else made._replace(data=b""))
        first += len(chunk)
        _let_go(chunk)
    started = time.monotonic()
    for outcome, parts in encoded.items():
        if parts:
            data = parts[0].data or table_bytes(pa.concat_tables([part.table for part in parts]))
            name = f"{FOLDERS[outcome]}/{attempt}.parquet"
            objects.append(store(context.storage, name, data, sum(part.rows for part in parts), outcome))
    writes.append(time.monotonic() - started)
    return objects


def _write_chunk(
    context: RunContext, attempt: str, first: int, results: Sequence[SampleResult], writes: list[float]
) -> tuple[dict[Outcome, Encoded], list[StoredObject]]:
    """(tables, point clouds that were written) of results that are complete; `first` is the number of the first."""
    names: dict[str, str] = {}
    if context.spec.output.points.as_files:
        kept_ones = ((number, r) for number, r in enumerate(results, first) if outcome_of(r) == "kept")
        names = {r.sample.id: f"pointclouds/{attempt}/{number:05d}.ply" for number, r in kept_ones}
    tables = _encode_all(context, results, names)  # before any point cloud: who cannot be encoded must not have one
    with ThreadPoolExecutor(WRITERS) as pool:
        kept = [result for result in results if names and outcome_of(result) == "kept"]
        started = time.monotonic()
        made = list(pool.map(lambda result: _write_points(context, names[result.sample.id], result), kept))
        if kept:
            writes.append(time.monotonic() - started)  # they are made and written at once, by several threads
    objects = [stored for stored in made if stored is not None]
    if len(objects) < len(kept):
        tables = _encode_all(context, results, names)
    return tables, objects


def _let_go(results: Iterable[SampleResult]) -> None:
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
    """The samples of each outcome that there is; who cannot be encoded joins the last, the quarantined."""
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
                raise  # not about one row
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
    """Encode samples one by one and give an error to those that fail; returns how many did."""
    for result in chosen:
        try:
            table_bytes(encode_samples([result], context.spec, outcome, pointclouds))
        except Exception as error:  # noqa: BLE001 - the boundary of a row
            _fail(result, error, "encoding it")
    return sum(result.error is not None for result in chosen)


def store(storage: Storage, name: str, data: bytes, rows: int, outcome: Outcome) -> StoredObject:
    """Write a table and say what was written."""
    storage.write_bytes(name, data)
    return StoredObject(name, len(data), sha256(data), rows, outcome)


def _write_points(context: RunContext, name: str, result: SampleResult) -> StoredObject | None:
    """Write a sample's point cloud; None, and its error, where it has none that can be made."""
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
    spans = {span.uri: number for number, span in reversed(list(enumerate(entry.shard.spans)))}
    for result in results:
        row = result.sample.row
        yield SampleOutcome(
            id=result.sample.id,
            span=_span_of(entry, row, spans[row.uri]),
            position=row.position,
            index=result.sample.index,
            outcome=outcome_of(result),
            reasons=tuple(result.reasons),
        )


def _span_of(entry: PlannedShard, row: Row, first: int) -> int:
    """The span a row lies in: rounds of regeneration have many spans of one file."""
    for number, span in enumerate(entry.shard.spans[first:], first):
        if span.uri == row.uri and span.start <= row.position < span.stop:
            return number
    raise AssertionError(f"{row.uri}:{row.position} is not in shard {entry.shard.id}")
