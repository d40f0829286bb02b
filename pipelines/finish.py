"""The last task of a shard: restore sizes, score, filter, encode, write, commit. On any node, on CPU.

An attempt draws its token here, so that no two attempts share a name whoever started them. It writes its objects under
names that carry the token, then tries to become the shard's one commit. Who loses throws its own objects away and
reports the winner.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from jointdit.depth import plan_fit, restore_size, source_window
from pipelines.context import RunContext
from pipelines.ledger import (
    OUTCOMES,
    Commit,
    Ledger,
    Outcome,
    PlannedShard,
    SampleOutcome,
    StoredObject,
    new_token,
    now,
    sha256,
)
from pipelines.quality import Filter, decide, load_filters, measure
from pipelines.read import ShardRows, source_disparity
from pipelines.records import Row, SampleResult
from pipelines.sinks.geometry import geometry_of, point_cloud
from pipelines.sinks.parquet import encode_samples, table_bytes
from pipelines.sinks.ply import describe, ply_bytes
from pipelines.storage import Storage

FOLDERS: dict[Outcome, str] = {"kept": "data", "rejected": "rejected", "quarantined": "quarantine"}
WRITERS = 8


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


def finish_shard(context: RunContext, entry: PlannedShard, rows: ShardRows, *parts: Sequence[SampleResult]) -> Receipt:
    """Turn a shard's results into objects and its commit.

    Raises:
        TransientError: the store; CommitFailed and CommitUnknown among them. The shard is tried again.
    """
    started = time.monotonic()
    token = new_token()
    filters = load_filters(context.spec.quality.filters)
    results = _in_order([*rows.failed, *(result for part in parts for result in part)], entry)
    sources = {(source.row.uri, source.row.position): source.row for source in rows.rows}
    for result in results:
        if result.error is None:
            _complete(context, result, sources[result.sample.row.uri, result.sample.row.position], filters)
    objects = write_objects(context, entry.shard.id, token, results)
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
    winner = Ledger(context.storage).commit(commit)
    if winner.token != token:
        for stored in objects:
            context.storage.delete(stored.path)
    bad = next((result for result in results if result.error is not None), None)
    return Receipt(
        shard=entry.shard.id,
        token=winner.token,
        won=winner.token == token,
        counts=winner.counts,
        reasons=dict(Counter(reason.split(":")[0] for s in winner.samples for reason in s.reasons)),
        bytes=sum(stored.bytes for stored in winner.objects),
        example=f"{bad.sample.id}: {bad.error}" if bad else "",
    )


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


def _complete(context: RunContext, result: SampleResult, source: Row, filters: Sequence[Filter]) -> None:
    """Give a result its source row, the source's size, its scores and the filters' decision."""
    if result.caption is not None:
        source = replace(source, prompt=result.caption)
    result.sample = replace(result.sample, row=source)
    if result.encoded is not None:
        return
    resize = context.spec.model.resize
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
    result.scores = measure(result)
    result.reasons = decide(filters, result.scores)


def write_objects(context: RunContext, shard: str, token: str, results: Sequence[SampleResult]) -> list[StoredObject]:
    """Write an attempt's point clouds and tables under names of its own."""
    objects: list[StoredObject] = []
    pointclouds: dict[str, str] = {}
    attempt = f"{shard}-{token}"
    with ThreadPoolExecutor(WRITERS) as pool:
        if context.spec.output.points.format == "ply":
            made = [(number, result) for number, result in enumerate(results) if outcome_of(result) == "kept"]
            names = [f"pointclouds/{attempt}/{number:05d}.ply" for number, _ in made]
            pointclouds = {result.sample.id: name for name, (_, result) in zip(names, made, strict=True)}
            jobs = [
                pool.submit(_write_points, context, name, result) for name, (_, result) in zip(names, made, strict=True)
            ]
            objects += [job.result() for job in jobs]
    for outcome in OUTCOMES:
        chosen = [result for result in results if outcome_of(result) == outcome]
        if chosen:
            data = table_bytes(encode_samples(chosen, context.spec, outcome, pointclouds))
            name = f"{FOLDERS[outcome]}/{attempt}.parquet"
            objects.append(store(context.storage, name, data, len(chosen), outcome))
    return objects


def store(storage: Storage, name: str, data: bytes, rows: int, outcome: Outcome) -> StoredObject:
    """Write a table and say what was written."""
    storage.write_bytes(name, data)
    return StoredObject(name, len(data), sha256(data), rows, outcome)


def _write_points(context: RunContext, name: str, result: SampleResult) -> StoredObject:
    geometry = geometry_of(result, context.spec)
    threshold = context.spec.output.points.edge_threshold
    points, colours = point_cloud(result, geometry, threshold)
    data = ply_bytes(points, colours, describe(result.sample.id, geometry, threshold))
    context.storage.write_bytes(name, data)
    return StoredObject(name, len(data), sha256(data), len(points), "kept", "points")


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
