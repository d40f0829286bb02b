"""Plan files as Arrow tables: a job of a million shards is looked at by column, and objects are made of those to run.

table_of(entries)            what a plan file holds
rows_of(table, positions)    the fields of all its shards, or of some
files_of(tables)             which version of each input file was planned last
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.records import Span

if TYPE_CHECKING:
    from pipelines.ledger.entries import PlannedShard

SPAN_FIELDS = [
    pa.field("uri", pa.string()),
    pa.field("etag", pa.string()),
    pa.field("relative_path", pa.string()),
    pa.field("start", pa.int64()),
    pa.field("stop", pa.int64()),
]
PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("round", pa.int32()),
        ("samples_per_row", pa.int32()),
        ("rows", pa.int64()),
        ("spans", pa.list_(pa.struct(SPAN_FIELDS))),
        ("indices", pa.list_(pa.int32())),  # of each row's samples; missing in plans of earlier versions
        ("retry", pa.int32()),  # 0, or the number of the retry that makes these samples again
    ]
)


class PlanRow(NamedTuple):
    """One shard as its plan file has it."""

    position: int
    shard: str
    round: int
    samples_per_row: int
    spans: tuple[Span, ...]
    indices: tuple[int, ...]  # empty in plans of earlier versions
    retry: int


class PlannedFile(NamedTuple):
    """An input version as the plan has it."""

    etag: str
    plan: int  # number of the plan file
    relative_path: str


def table_of(entries: Sequence[PlannedShard]) -> pa.Table:
    """The table of a plan file."""
    spans = list(chain.from_iterable(entry.shard.spans for entry in entries))
    columns = [pa.array([getattr(span, each.name) for span in spans], each.type) for each in SPAN_FIELDS]
    ends = np.cumsum([0, *(len(entry.shard.spans) for entry in entries)], dtype=np.int32)
    return pa.table(
        [
            pa.array([entry.shard.id for entry in entries], pa.string()),
            pa.array([entry.shard.round for entry in entries], pa.int32()),
            pa.array([entry.samples_per_row for entry in entries], pa.int32()),
            pa.array([entry.shard.rows for entry in entries], pa.int64()),
            pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(columns, fields=SPAN_FIELDS)),
            pa.array([entry.indices for entry in entries], pa.list_(pa.int32())),
            pa.array([entry.retry for entry in entries], pa.int32()),
        ],
        schema=PLAN_SCHEMA,
    )


def rows_of(table: pa.Table, positions: Sequence[int] | None = None) -> Iterator[PlanRow]:
    """The shards of a plan file in its order, all or those at some positions. Equal texts are one object."""
    chosen = table if positions is None else table.take(pa.array(positions, pa.int64()))
    chosen = chosen.combine_chunks()
    places = range(len(chosen)) if positions is None else positions
    spans = _spans_of(chosen)
    lengths = pc.list_value_length(chosen["spans"]).to_pylist()
    ends = np.cumsum([0, *lengths])
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    columns = (chosen[name].to_pylist() for name in ("shard", "round", "samples_per_row", "indices", "retry"))
    for place, (first, last), shard, number, count, found, retry in zip(places, pairwise(ends), *columns, strict=True):
        indices = tuple(found or ())
        yield PlanRow(
            place, shard, number, count, tuple(spans[first:last]), known.setdefault(indices, indices), retry or 0
        )


def files_of(tables: Mapping[int, pa.Table]) -> dict[str, PlannedFile]:
    """uri -> the version of each input file that was planned last; of shards that plan their rows."""
    files: dict[str, PlannedFile] = {}
    for number in sorted(tables):
        spans = _flat(tables[number].filter(is_first(tables[number])))
        names = ["uri", "etag", "relative_path"]
        found = pa.table({name: spans.field(name) for name in names}).group_by(names, False).aggregate([]).to_pydict()
        rows = zip(*(found[name] for name in names), strict=True)
        files.update({uri: PlannedFile(etag, number, path) for uri, etag, path in rows})
    return files


def owners_of(tables: Mapping[int, pa.Table], etags: Collection[str]) -> dict[str, list[str]]:
    """ETag -> the files that were planned with it, whatever they are by now; of shards that plan their rows."""
    owners: dict[str, list[str]] = {}
    for number in sorted(tables):
        spans = _flat(tables[number].filter(is_first(tables[number])))
        spans = spans.filter(pc.is_in(spans.field("etag"), pa.array(sorted(etags), pa.string())))
        found = pa.table({name: spans.field(name) for name in ("uri", "etag")}).group_by(["uri", "etag"], False)
        for row in found.aggregate([]).to_pylist():
            owners.setdefault(row["etag"], []).append(row["uri"])
    return owners


def versions_of(tables: Mapping[int, pa.Table]) -> dict[str, tuple[str, int]]:
    """uri -> its etag that was planned last, and in which plan file; of shards that plan their rows."""
    return {uri: (file.etag, file.plan) for uri, file in files_of(tables).items()}


def is_first(table: pa.Table) -> pa.ChunkedArray:
    """Which shards plan their rows, and make nothing for the second time."""
    return pc.and_(pc.equal(table["round"], 0), pc.equal(pc.fill_null(table["retry"], 0), 0))


def _flat(table: pa.Table) -> pa.StructArray:
    """All spans of a table, one after the other."""
    spans = table["spans"].combine_chunks()
    return (spans.combine_chunks() if isinstance(spans, pa.ChunkedArray) else spans).flatten()


def _spans_of(table: pa.Table) -> list[Span]:
    flat = _flat(table)
    texts = []
    for name in ("uri", "etag", "relative_path"):
        encoded = flat.field(name).dictionary_encode()
        words = encoded.dictionary.to_pylist()
        texts.append([words[place] for place in encoded.indices.to_pylist()])
    starts, stops = flat.field("start").to_pylist(), flat.field("stop").to_pylist()
    return [Span(*fields) for fields in zip(*texts, starts, stops, strict=True)]
