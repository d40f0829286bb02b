"""Shards and their ids, and how a plan file is appended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from jointdit.errors import InputError
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.records import Shard, SourceFile, Span, merge_adjacent
from pipelines.store.storage import AlreadyExists

APPEND_ATTEMPTS = 100


def cut_shards(counts: Iterable[tuple[SourceFile, int]], shard_rows: int, fingerprint_digest: str) -> Iterator[Shard]:
    """Cut files into shards of at most `shard_rows` rows. Small files share a shard; a larger file shares with none."""
    pack: list[Span] = []
    packed = 0  # rows of these spans
    for file, rows in counts:
        if pack and packed + rows > shard_rows:
            yield make_shard(pack, 0, fingerprint_digest)
            pack, packed = [], 0
        if rows > shard_rows:
            for start in range(0, rows, shard_rows):
                stop = min(start + shard_rows, rows)
                yield make_shard([Span(file.uri, file.etag, file.relative_path, start, stop)], 0, fingerprint_digest)
        elif rows:
            pack.append(Span(file.uri, file.etag, file.relative_path, 0, rows))
            packed += rows
    if pack:
        yield make_shard(pack, 0, fingerprint_digest)


def cut_spans(spans: Iterable[Span], shard_rows: int, fingerprint_digest: str) -> Iterator[Shard]:
    """Cut spans into shards of at most `shard_rows` rows, in order, whatever files they are of."""
    pack: list[Span] = []
    left = shard_rows
    for span in spans:
        start = span.start
        while start < span.stop:
            stop = min(span.stop, start + left)
            pack.append(replace(span, start=start, stop=stop))
            left -= stop - start
            start = stop
            if not left:
                yield make_shard(pack, 0, fingerprint_digest)
                pack, left = [], shard_rows
    if pack:
        yield make_shard(pack, 0, fingerprint_digest)


def make_shard(
    spans: Sequence[Span],
    round_: int,
    fingerprint_digest: str,
    samples_per_row: int | None = None,
    indices: Sequence[int] = (),
    retry: int = 0,
) -> Shard:
    """Return a shard whose id depends only on input versions, row ranges, round and fingerprint.

    In rounds above 0 it also depends on `samples_per_row`, and on `indices` and `retry` unless they follow from these.
    """
    key: list[object] = [[[span.uri, span.etag, span.start, span.stop] for span in spans]]
    key += [round_, samples_per_row, fingerprint_digest]
    if indices:
        key += [list(indices), retry]
    return Shard(hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20], tuple(spans), round_)


def id_of(entry: PlannedShard, fingerprint_digest: str, samples_per_row: int) -> str:
    """Return the id that a planned shard must have. `samples_per_row` is the job's."""
    spans, round_, indices = entry.shard.spans, entry.shard.round, entry.indices
    first = round_ * samples_per_row
    if entry.retry or indices != tuple(range(first, first + len(indices))):
        return make_shard(spans, round_, fingerprint_digest, len(indices), indices, entry.retry).id
    return make_shard(spans, round_, fingerprint_digest, len(indices) if round_ else None).id


def append(ledger: Ledger, propose_more: Callable[[], Sequence[PlannedShard]]) -> list[PlannedShard]:
    """Append the shards that a function proposes from the ledger. It is called again if another driver was first."""
    for _ in range(APPEND_ATTEMPTS):
        shards = list(propose_more())
        if not shards:
            return []
        try:
            ledger.append_plan(shards[0].plan, shards)
            return shards
        except AlreadyExists:
            continue
    raise InputError(f"other drivers keep extending the plan of {ledger.storage.uri}: run again when they are done.")


def cut_rows(rows: Sequence[Span], shard_rows: int) -> Iterator[tuple[Span, ...]]:
    """Split single rows, in order, into parts of at most `shard_rows`."""
    for start in range(0, len(rows), shard_rows):
        yield tuple(rows[start : start + shard_rows])


def shards_of_rows(
    groups: Mapping[tuple[int, tuple[int, ...]], Sequence[Span]],
    number: int,
    shard_rows: int,
    fingerprint_digest: str,
    samples_per_row: int,
    retry: int = 0,
) -> list[PlannedShard]:
    """Cut single rows into shards of plan file `number`, with at most `shard_rows` rows each.

    Rows are sorted by position within their files, and adjacent rows become one span.

    Args:
        groups: (round, sample indices) -> rows that need these samples. Rows of one group share shards.
        samples_per_row: the job's.
    """
    shards: list[PlannedShard] = []
    for (round_, indices), rows in groups.items():
        places = {file: place for place, file in enumerate(dict.fromkeys(row.file for row in rows))}
        in_order = sorted(rows, key=lambda row: (places[row.file], row.start))
        for part in cut_rows(in_order, shard_rows):
            shard = Shard("", tuple(merge_adjacent(part)), round_)
            entry = PlannedShard(shard, len(indices), number, len(shards), indices, retry)
            identifier = id_of(entry, fingerprint_digest, samples_per_row)
            shards.append(replace(entry, shard=replace(entry.shard, id=identifier)))
    return shards
