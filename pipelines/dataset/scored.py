"""What is stored of samples with pixels, as columns: scores, perceptual hashes, captions; and what filters say of them.

Tables of samples have the columns shard, id, made and made_reasons at least. The rows of a shard lie together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jointdit.errors import PermanentError, StoreError
from pipelines.dataset.decisions import Criteria
from pipelines.quality import Filter, decide
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.storage import Storage

REASONS = pa.list_(pa.string())


def slices_of(samples: pa.Table) -> Iterator[tuple[str, int, int]]:
    """Yield (shard, first row, number of rows) of each shard of a table."""
    runs = pc.run_end_encode(samples["shard"].combine_chunks())
    start = 0
    for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield shard, start, end - start
        start = end


def with_pixels(samples: pa.Table) -> NDArray[np.bool_]:
    """Return which samples have pixels, and so a row in a table with scores (n)."""
    is_made = pc.not_equal(samples["made"], "quarantined")
    mask: NDArray[np.bool_] = pc.fill_null(is_made, True).to_numpy()  # versions of format 1 and 2 do not say it
    return mask


def read_facts(
    storage: Storage, samples: pa.Table, tables: Mapping[str, Sequence[str]], criteria: Criteria
) -> pa.Table:
    """Read what the criteria use of each sample. No image is read.

    Args:
        samples: n samples.
        tables: shard -> paths of the tables of its kept and rejected samples.

    Returns:
        n rows in the order of the samples, null without pixels: a column for each score, phash and prompt.

    Raises:
        StoreError: a table lacks a sample.
    """
    schema = _schema_of(criteria)
    if schema.keys() == {"id"}:
        return pa.table({})
    needed = with_pixels(samples)
    ids = samples["id"].combine_chunks()

    def read(part: tuple[str, int, int]) -> pa.Table:
        shard, start, count = part
        paths = tables.get(shard, ())
        stored = [_read_table(storage, path, schema) for path in paths]
        mine = ids.slice(start, count)
        found = pa.concat_tables(stored) if stored else _empty(schema)
        places = pc.index_in(mine, value_set=found["id"].combine_chunks())
        lost = pc.and_(places.is_null(), pa.array(needed[start : start + count]))
        if pc.any(lost).as_py():
            raise StoreError(
                f"{', '.join(map(storage.uri_of, paths)) or f'shard {shard}'} lacks sample "
                f"{mine.filter(lost)[0].as_py()}: restore the tables from a backup."
            )
        return found.drop_columns(["id"]).take(places)

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        parts = list(pool.map(read, slices_of(samples)))
    return (pa.concat_tables(parts) if parts else _empty(schema).drop_columns(["id"])).combine_chunks()


def _schema_of(criteria: Criteria) -> dict[str, pa.DataType]:
    """Return column -> type, of those that the criteria use."""
    columns = {"id": pa.string()} | {f"quality.{name}": pa.float64() for name in criteria.scores}
    if criteria.max_distance is not None:
        columns["phash"] = pa.string()
    if any(_reads_captions(each) for each in criteria.filters):
        columns["prompt"] = pa.string()
    return columns


def _reads_captions(filter_: Filter) -> bool:
    return type(filter_).reject_caption is not Filter.reject_caption


def _empty(schema: Mapping[str, pa.DataType]) -> pa.Table:
    return pa.schema(list(schema.items())).empty_table()


def _read_table(storage: Storage, path: str, schema: Mapping[str, pa.DataType]) -> pa.Table:
    with storage.open(path) as file, pq.ParquetFile(file) as parquet:
        table = parquet.read(columns=list(schema), use_threads=False).flatten()
    nulls = {name: pa.nulls(len(table), kind) for name, kind in schema.items() if name not in table.column_names}
    return pa.table({name: nulls[name] if name in nulls else table[name].cast(kind) for name, kind in schema.items()})


def read_scores(storage: Storage, path: str) -> list[dict[str, float | None]]:
    """Return all scores of the samples of one table."""
    with storage.open(path) as file, pq.ParquetFile(file) as parquet:
        return [row["quality"] or {} for row in parquet.read(columns=["quality"]).to_pylist()]


def score_of(facts: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a score of each sample (n), null where it was not computed."""
    return facts[f"quality.{name}"]


def by_filters(samples: pa.Table, facts: pa.Table, filters: Sequence[Filter]) -> tuple[pa.Array, pa.Array]:
    """Decide samples by filters on their stored scores. Quarantined samples stay quarantined.

    Returns:
        Outcome and reasons of each sample (n each), reasons null where there are none.
    """
    pixels = with_pixels(samples)
    outcomes = np.where(pixels, "kept", "quarantined").astype(object)
    reasons: NDArray[np.object_] = np.full(len(samples), None, object)
    places = np.flatnonzero(~pixels)
    for place, given in zip(places.tolist(), samples["made_reasons"].take(pa.array(places)).to_pylist(), strict=True):
        reasons[place] = given or None
    suspects = np.flatnonzero(pixels & _may_reject(facts, filters, len(samples)))
    for place, row in zip(suspects.tolist(), facts.take(pa.array(suspects)).to_pylist(), strict=True):
        scores = {name.removeprefix("quality."): value for name, value in row.items() if name.startswith("quality.")}
        if found := decide(filters, scores, row.get("prompt")):
            outcomes[place], reasons[place] = "rejected", found
    return pa.array(outcomes, pa.string()), pa.array(reasons.tolist(), REASONS)


def _may_reject(facts: pa.Table, filters: Sequence[Filter], count: int) -> NDArray[np.bool_]:
    """Return which samples a filter may reject (n): all others are certainly kept."""
    may = np.zeros(count, bool)
    for filter_ in filters:
        if _reads_captions(filter_) or type(filter_).reject is not Filter.reject:
            return np.ones(count, bool)
        scores = {name: score_of(facts, name).to_numpy() for name in filter_.scores}  # null is NaN
        for limit in filter_.limits():
            score, threshold = scores[limit.score], getattr(filter_, limit.field)
            may |= ~(score >= threshold if limit.is_lower else score <= threshold)
        for name in filter_.scores:
            may |= score_of(facts, name).is_null().to_numpy()
    return may


@dataclass
class Lacking:
    """Counts the samples that lack a score, or the hash, which the criteria use.

    A score that only some samples of a shard lack could not be computed for them, as for a constant map: no filter
    keeps them (`decide`). Where all samples of a shard lack it, it was never computed, unless their reasons say so.
    """

    criteria: Criteria
    _found: dict[str, tuple[tuple[int, int], int, str]] = field(default_factory=dict)  # (first place, samples, id)
    _first: tuple[int, int] | None = None  # of a shard with pixels

    def look_at(self, samples: pa.Table, facts: pa.Table) -> None:
        """Add samples, which have the columns plan and place too."""
        pixels = with_pixels(samples)
        columns = {name: score_of(facts, name).is_null().to_numpy() & pixels for name in self.criteria.scores}
        if self.criteria.max_distance is not None:
            columns["phash"] = facts["phash"].is_null().to_numpy() & pixels
        for _, start, count in slices_of(samples):
            part = slice(start, start + count)
            if not pixels[part].any():
                continue
            place = samples["plan"][start].as_py(), samples["place"][start].as_py()
            self._first = min(self._first or place, place)
            for name, lacks in columns.items():
                if not lacks[part].any():
                    continue
                rows = np.flatnonzero(lacks[part]) + start
                if name == "phash" or (
                    len(rows) == pixels[part].sum() and not _was_tried(name, samples["made_reasons"], rows)
                ):
                    self._note(name, place, len(rows), samples["id"][int(rows[0])].as_py())

    def _note(self, name: str, place: tuple[int, int], count: int, identifier: str) -> None:
        first, known, example = self._found.get(name, (place, 0, identifier))
        self._found[name] = min(first, place), known + count, example if first <= place else identifier

    def refuse(self, uri: str) -> None:
        """Raise PermanentError if samples lack something; of several things, what is lacking first in the plan."""
        if not self._found:
            return
        order = [*self.criteria.scores, "phash"]
        places = {name: first for name, (first, _, _) in self._found.items()}
        if "phash" in places and self._first is not None:
            places["phash"] = self._first  # shards name it after scores, also those that do not lack it
        name = min(places, key=lambda each: (places[each], order.index(each)))
        _, samples, identifier = self._found[name]
        score = "perceptual hash" if name == "phash" else f"score {name}"
        count = f"{samples} sample{'s lack' if samples > 1 else ' lacks'}"
        raise PermanentError(
            f"{uri}: {count} the {score}, such as {identifier}, because it was not computed when they were "
            "made: choose criteria without it, or make them in a new job that computes it."
        )


def _was_tried(name: str, reasons: pa.ChunkedArray, rows: NDArray[np.int64]) -> bool:
    given = reasons.take(pa.array(rows)).to_pylist()
    return any(f": {name} was not computed" in reason for each in given for reason in each or ())
