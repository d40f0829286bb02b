"""Plan files as Arrow tables, which are filtered by column before objects are made.

table_of(entries)            the table of a plan file
rows_of(table, positions)    the shards of a plan file, all or some
files_of(tables)             the latest planned version of each input file
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.ledger.carried import CarriedRows, FileVersion, Origin, base_path
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
ORIGIN = pa.struct([("etag", pa.string()), ("plan", pa.int32()), ("relative_path", pa.string())])
RUN = pa.struct(
    [
        ("span", pa.int32()),  # index of the span whose version has the rows
        ("at", pa.int64()),  # first row in this version
        ("origin", pa.int32()),  # index into `origins`
        ("start", pa.int64()),  # first row in the version of the origin
        ("rows", pa.int64()),
    ]
)
PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("round", pa.int32()),
        ("samples_per_row", pa.int32()),
        ("rows", pa.int64()),
        ("spans", pa.list_(pa.struct(SPAN_FIELDS))),
        ("indices", pa.list_(pa.int32())),  # sample indices of each row; missing in plans of earlier versions
        ("retry", pa.int32()),  # 0, or the number of the retry
        ("origins", pa.list_(ORIGIN)),
        ("carried", pa.list_(RUN)),  # rows of its spans that were made for earlier versions (carried.py)
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
    carried: tuple[CarriedRows, ...]


class PlannedFile(NamedTuple):
    """A planned input version."""

    etag: str
    plan: int  # number of the plan file
    relative_path: str  # as it was listed (carried.base_path)
    is_plain: bool = True  # whether its rows have the default ids of their row numbers, and none is carried


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
            *_carried_columns(entries),
        ],
        schema=PLAN_SCHEMA,
    )


def _carried_columns(entries: Sequence[PlannedShard]) -> tuple[pa.Array, pa.Array]:
    """Return the columns `origins` and `carried`; empty lists for the shards that carry nothing."""
    origins: list[list[Mapping[str, object]]] = []
    ends, parts = [0], []
    for entry in entries:
        origins.append([])
        spans = {(span.uri, span.etag): number for number, span in enumerate(entry.shard.spans)}
        for carried in entry.carried:
            count, first = len(carried.at), len(origins[-1])
            origins[-1] += [origin._asdict() for origin in carried.origins]
            span = np.full(count, spans[carried.uri, carried.etag])
            parts.append([span, carried.at, carried.origin + first, carried.start, carried.rows])
        ends.append(ends[-1] + sum(len(carried.at) for carried in entry.carried))
    fields = list(RUN)
    columns = zip(*parts, strict=True) if parts else ((),) * len(fields)
    none = np.zeros(0, np.int64)
    arrays = [pa.array(np.concatenate([none, *c]), field.type) for c, field in zip(columns, fields, strict=True)]
    runs = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.array(origins, pa.list_(ORIGIN)), pa.ListArray.from_arrays(pa.array(ends, pa.int32()), runs)


def carried_in(table: pa.Table, place: int) -> tuple[CarriedRows, ...]:
    """Return what the shard at a place of a plan file carries."""
    origins, runs = table["origins"][place].as_py(), table["carried"][place].values
    if runs is None or not len(runs):
        return ()
    spans = table["spans"][place].as_py()
    known = [Origin(**origin) for origin in origins]
    columns = {f.name: runs.field(f.name).to_numpy(zero_copy_only=False).astype(np.int64) for f in RUN}
    carried = []
    for number in np.unique(columns["span"]).tolist():
        mine = columns["span"] == number
        used, origin = np.unique(columns["origin"][mine], return_inverse=True)
        carried.append(
            CarriedRows(
                uri=spans[number]["uri"],
                etag=spans[number]["etag"],
                origins=tuple(known[place] for place in used.tolist()),
                at=columns["at"][mine],
                origin=origin,
                start=columns["start"][mine],
                rows=columns["rows"][mine],
            )
        )
    return tuple(carried)


def carrying(table: pa.Table) -> list[int]:
    """Return the places of the shards of a plan file that carry rows."""
    lengths = pc.fill_null(pc.list_value_length(table["carried"]), 0)
    places: list[int] = pc.indices_nonzero(pc.greater(lengths, 0)).to_pylist()
    return places


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
    carried = {places[number]: carried_in(chosen, number) for number in carrying(chosen)}
    for place, (first, last), shard, number, count, listed, retry in zip(places, pairwise(ends), *columns, strict=True):
        indices = tuple(listed or ())
        indices = known.setdefault(indices, indices)
        own = carried.get(place, ())
        yield PlanRow(place, shard, number, count, tuple(spans[first:last]), indices, retry or 0, own)


def files_of(tables: Mapping[int, pa.Table]) -> dict[str, PlannedFile]:
    """Map each uri to the version of the file that was planned last. Retries and regeneration are ignored."""
    files: dict[str, PlannedFile] = {}
    for number in sorted(tables):
        spans = flat_spans(tables[number].filter(is_first(tables[number])))
        names = ["uri", "etag", "relative_path"]
        columns = pa.table({name: spans.field(name) for name in names}).group_by(names, False).aggregate([]).to_pydict()
        uris = {rows.uri for place in carrying(tables[number]) for rows in carried_in(tables[number], place)}
        here: dict[str, PlannedFile] = {}
        for uri, etag, path in zip(*(columns[name] for name in names), strict=True):
            base = base_path(path)
            is_plain = path == base and uri not in uris and (uri not in here or here[uri].is_plain)
            here[uri] = PlannedFile(etag, number, base, is_plain)
        files.update(here)
    return files


def highest_rows(tables: Mapping[int, pa.Table], paths: Collection[str]) -> dict[str, int]:
    """Map paths to the number of rows that ever had a default id of them: higher row numbers are free."""
    highest: dict[str, int] = dict.fromkeys(paths, 0)
    for table in tables.values():
        spans = flat_spans(table)
        spans = spans.filter(pc.is_in(spans.field("relative_path"), pa.array(sorted(paths), pa.string())))
        columns = pa.table({name: spans.field(name) for name in ("relative_path", "stop")})
        for row in columns.group_by("relative_path").aggregate([("stop", "max")]).to_pylist():
            highest[row["relative_path"]] = max(highest[row["relative_path"]], row["stop_max"])
    return highest


def row_counts(tables: Mapping[int, pa.Table]) -> Counter[str]:
    """Count the rows of each file in its latest planned version."""
    versions, counts = versions_of(tables), Counter[str]()
    for number, table in tables.items():
        spans = flat_spans(table.filter(is_first(table)))
        rows = pa.table({"uri": spans.field("uri"), "rows": pc.subtract(spans.field("stop"), spans.field("start"))})
        for row in rows.group_by("uri").aggregate([("rows", "sum")]).to_pylist():
            if versions[row["uri"]].plan == number:
                counts[row["uri"]] += row["rows_sum"]
    counts.update({uri: version.carried.total for uri, version in versions.items() if version.carried is not None})
    return counts


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


def versions_of(tables: Mapping[int, pa.Table]) -> dict[str, FileVersion]:
    """Map each uri to its latest planned version."""
    versions = {uri: FileVersion(file.etag, file.plan) for uri, file in files_of(tables).items()}
    for number, table in tables.items():
        for carried in (rows for place in carrying(table) for rows in carried_in(table, place)):
            if versions[carried.uri].plan == number:
                versions[carried.uri] = FileVersion(carried.etag, number, carried)
    return versions


class CountingRows(NamedTuple):
    """The rows of each shard of a plan file that are of the input versions that count."""

    is_current: NDArray[np.bool_]  # (n), whether any of its files is of that version
    rows: NDArray[np.int64]  # (n)


def current_rows(number: int, table: pa.Table, versions: Mapping[str, FileVersion]) -> CountingRows:
    """Count the rows of each shard of plan file `number` that are in the latest planned version of their file.

    Like `InputVersions.is_current`, by column. `versions`: uri -> its latest planned version.
    """
    spans, parents = flat_spans(table), parents_of(table).to_numpy(zero_copy_only=False)
    uris = spans.field("uri").dictionary_encode()
    latest = [versions[uri] for uri in uris.dictionary.to_pylist()]
    etags = pa.array([version.etag for version in latest], pa.string()).take(uris.indices)
    same = pc.equal(spans.field("etag"), etags).to_numpy(zero_copy_only=False)
    files = uris.indices.to_numpy(zero_copy_only=False)
    plans = np.array([version.plan for version in latest], np.int64)[files]
    first = is_first(table).to_numpy()[parents]
    current = same & (~first | (plans == number))
    lengths = pc.subtract(spans.field("stop"), spans.field("start")).to_numpy(zero_copy_only=False) * current
    carries = np.array([version.carried is not None for version in latest], bool)[files]
    for place in np.flatnonzero(carries & ~current).tolist():
        span, carried = spans[place].as_py(), latest[int(files[place])].carried
        assert carried is not None
        plan = number if first[place] else None
        lengths[place] = carried.count(span["etag"], span["start"], span["stop"], plan)
    rows = np.bincount(parents, weights=lengths, minlength=len(table)).astype(np.int64)
    return CountingRows(np.bincount(parents, weights=current | (lengths > 0), minlength=len(table)) > 0, rows)


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
