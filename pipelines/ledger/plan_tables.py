"""Plan files as Arrow tables, which are filtered by column before objects are made.

table_of(entries)            the table of a plan file
rows_of(table, positions)    the shards of a plan file, all or some
files_of(tables)             the latest planned version of each input file
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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
        ("indices", pa.list_(pa.int32())),  # sample indices of each row; missing in plans of earlier versions
        ("retry", pa.int32()),  # 0, or the number of the retry
    ]
)


class PlanRow(NamedTuple):
    """One shard as its plan file stores it."""

    position: int
    shard: str
    round: int
    samples_per_row: int
    spans: tuple[Span, ...]
    indices: tuple[int, ...]  # empty in plans of earlier versions
    retry: int


class PlannedFile(NamedTuple):
    """A planned input version."""

    etag: str
    plan: int  # number of the plan file
    relative_path: str


def table_of(entries: Sequence[PlannedShard]) -> pa.Table:
    """Return the table of a plan file."""
    spans = list(chain.from_iterable(entry.shard.spans for entry in entries))
    columns = [pa.array([getattr(span, field.name) for span in spans], field.type) for field in SPAN_FIELDS]
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
    """Yield the shards of a plan file in its order, all or those at `positions`. Equal strings share one object."""
    chosen = table if positions is None else table.take(pa.array(positions, pa.int64()))
    chosen = chosen.combine_chunks()
    places = range(len(chosen)) if positions is None else positions
    spans = _spans_of(chosen)
    lengths = pc.list_value_length(chosen["spans"]).to_pylist()
    ends = np.cumsum([0, *lengths])
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    columns = (chosen[name].to_pylist() for name in ("shard", "round", "samples_per_row", "indices", "retry"))
    for place, (first, last), shard, number, count, listed, retry in zip(places, pairwise(ends), *columns, strict=True):
        indices = tuple(listed or ())
        indices = known.setdefault(indices, indices)
        yield PlanRow(place, shard, number, count, tuple(spans[first:last]), indices, retry or 0)


def files_of(tables: Mapping[int, pa.Table]) -> dict[str, PlannedFile]:
    """Map each uri to the version of the file that was planned last. Retries and regeneration are ignored."""
    files: dict[str, PlannedFile] = {}
    for number in sorted(tables):
        spans = flat_spans(tables[number].filter(is_first(tables[number])))
        names = ["uri", "etag", "relative_path"]
        columns = pa.table({name: spans.field(name) for name in names}).group_by(names, False).aggregate([]).to_pydict()
        rows = zip(*(columns[name] for name in names), strict=True)
        files.update({uri: PlannedFile(etag, number, path) for uri, etag, path in rows})
    return files


def owners_of(tables: Mapping[int, pa.Table], etags: Collection[str]) -> dict[str, list[str]]:
    """Map each ETag to the files that were ever planned with it. Retries and regeneration are ignored."""
    owners: dict[str, list[str]] = {}
    for number in sorted(tables):
        spans = flat_spans(tables[number].filter(is_first(tables[number])))
        spans = spans.filter(pc.is_in(spans.field("etag"), pa.array(sorted(etags), pa.string())))
        pairs = pa.table({name: spans.field(name) for name in ("uri", "etag")}).group_by(["uri", "etag"], False)
        for row in pairs.aggregate([]).to_pylist():
            owners.setdefault(row["etag"], []).append(row["uri"])
    return owners


def versions_of(tables: Mapping[int, pa.Table]) -> dict[str, tuple[str, int]]:
    """Map each uri to its latest planned etag and the number of that plan file."""
    return {uri: (file.etag, file.plan) for uri, file in files_of(tables).items()}


class CountingRows(NamedTuple):
    """The rows of each shard of a plan file that are of the input versions that count."""

    is_current: NDArray[np.bool_]  # (n), whether any of its files is of that version
    rows: NDArray[np.int64]  # (n)


def current_rows(number: int, table: pa.Table, versions: Mapping[str, tuple[str, int]]) -> CountingRows:
    """Count the rows of each shard of plan file `number` that are of the latest planned version of their file.

    Like `InputVersions.is_current`, by column. `versions`: uri -> (its latest planned etag, that plan file's number).
    """
    spans, parents = flat_spans(table), parents_of(table).to_numpy(zero_copy_only=False)
    uris = spans.field("uri").dictionary_encode()
    latest = [versions[uri] for uri in uris.dictionary.to_pylist()]
    etags = pa.array([etag for etag, _ in latest], pa.string()).take(uris.indices)
    same = pc.equal(spans.field("etag"), etags).to_numpy(zero_copy_only=False)
    plans = np.array([plan for _, plan in latest], np.int64)[uris.indices.to_numpy(zero_copy_only=False)]
    first = is_first(table).to_numpy()[parents]
    current = same & (~first | (plans == number))
    lengths = pc.subtract(spans.field("stop"), spans.field("start")).to_numpy(zero_copy_only=False)
    rows = np.bincount(parents, weights=lengths * current, minlength=len(table)).astype(np.int64)
    return CountingRows(np.bincount(parents, weights=current, minlength=len(table)) > 0, rows)


def parents_of(table: pa.Table) -> pa.Array:
    """Return the place of the shard of each span of a plan file (n)."""
    spans = table["spans"].combine_chunks()
    return pc.list_parent_indices(spans.combine_chunks() if isinstance(spans, pa.ChunkedArray) else spans)


def is_first(table: pa.Table) -> pa.ChunkedArray:
    """Return a mask of the shards that plan their rows for the first time."""
    return pc.and_(pc.equal(table["round"], 0), pc.equal(pc.fill_null(table["retry"], 0), 0))


def flat_spans(table: pa.Table) -> pa.StructArray:
    """Return all spans of a table as one array."""
    spans = table["spans"].combine_chunks()
    return (spans.combine_chunks() if isinstance(spans, pa.ChunkedArray) else spans).flatten()


def _spans_of(table: pa.Table) -> list[Span]:
    flat = flat_spans(table)
    texts = []
    for name in ("uri", "etag", "relative_path"):
        encoded = flat.field(name).dictionary_encode()
        words = encoded.dictionary.to_pylist()
        texts.append([words[place] for place in encoded.indices.to_pylist()])
    starts, stops = flat.field("start").to_pylist(), flat.field("stop").to_pylist()
    return [Span(*fields) for fields in zip(*texts, starts, stops, strict=True)]
