"""Decide the shards that are new or affected: which of their samples count, and where these end.

Where samples are not compared with each other, shards are decided as they are counted (ledger/counted.py). Otherwise
the shards are kept on a shelf while all samples, and what the latest version keeps, are compared in a database.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.decisions import Criteria, Decided, tables_in
from pipelines.dataset.scored import by_filters, read_facts, score_of
from pipelines.dataset.settling import DECIDED, HELD, ORDER, SETTLED, Settling, memory_for
from pipelines.ledger.changes import SHARDS_AT_ONCE
from pipelines.ledger.counted import CountedShard, Uncovered, counted_shards
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome
from pipelines.ledger.segments import ShardRows
from pipelines.ledger.versions import Version, read_outcomes
from pipelines.records import RowKey
from pipelines.store.joins import joins
from pipelines.store.shelf import Shelf, chunks_of
from pipelines.store.storage import Storage


@dataclass
class DecidedShard:
    """A committed shard, and where its samples end."""

    entry: PlannedShard
    commit: Commit
    rows: list[tuple[SampleOutcome, str]]  # samples that it makes, and the ids of their rows
    decided: dict[str, Decided]  # by sample id, those that count
    hashes: dict[str, str] = field(default_factory=dict)  # sample id -> perceptual hash, where the criteria need it
    withheld: int = 0  # samples that would count, and wait for others of their rows (withheld.py)

    @property
    def stands(self) -> bool:
        """Whether an earlier version decided all its samples."""
        return all(sample.since for sample in self.decided.values())


def decide_shards(
    work: Uncovered, criteria: Criteria, is_refiltered: bool, task: str, waiting: Collection[RowKey] = ()
) -> Iterator[list[DecidedShard]]:
    """Yield the shards that the next version must look at, some at a time, in the order of the plan.

    Args:
        is_refiltered: whether the criteria hold for all samples, whatever filters their commits were made with.
        waiting: rows whose samples are withheld, unless they are decided.

    Raises:
        Unfinished: a shard that counts has no commit.
    """
    chunks = ([withhold(shard, waiting) for shard in with_standing(work, each)] for each in counted_shards(work))
    if criteria.needs_all:
        yield from _decide_together(work, chunks, criteria, is_refiltered, task)
        return
    for shards in chunks:
        if is_refiltered:
            new = [shard for shard in shards if not shard.stands]
            ends = Ends(_scored(work, new, criteria, is_refiltered).to_batches())
            shards = [shard if shard.stands else ends.of(shard) for shard in shards]
        yield from chunks_of(shards, SHARDS_AT_ONCE)


def withhold(shard: DecidedShard, waiting: Collection[RowKey]) -> DecidedShard:
    """Return a shard without the decisions on samples of some rows, except those of earlier versions."""
    if not waiting:
        return shard
    spans, decided = shard.entry.shard.spans, dict(shard.decided)
    for sample, _ in shard.rows:
        span = spans[sample.span]
        if (span.uri, span.etag, sample.position) in waiting and sample.id in decided and not decided[sample.id].since:
            del decided[sample.id]
    return replace(shard, decided=decided, withheld=shard.withheld + len(shard.decided) - len(decided))


def _decide_together(
    work: Uncovered, chunks: Iterable[list[DecidedShard]], criteria: Criteria, is_refiltered: bool, task: str
) -> Iterator[list[DecidedShard]]:
    """Decide samples that are compared with each other, and with what the latest version keeps."""
    with joins(memory_for(criteria)) as connection, Shelf[DecidedShard]() as shelf:
        settling = Settling(connection)
        touched: dict[str, set[str]] = {}  # shard -> its samples whose decision stands
        has_new = False
        for shards in chunks:
            new = [shard for shard in shards if not shard.stands]
            has_new = has_new or bool(new)
            settling.add("decided", _scored(work, new, criteria, is_refiltered))
            touched.update({s.entry.shard.id: set(s.decided) if s.stands else set() for s in shards})
            shelf.add(shards)
        if has_new:
            for held in chunks_of(work.before.all_shards(), SHARDS_AT_ONCE):
                settling.add("held", _held(work.ledger.storage, held, touched, criteria))
            settling.settle(criteria, task)
        ends = Ends(settling.batches(f"select * from ({SETTLED}) order by {ORDER}"))
        for shards in chunks_of(shelf, SHARDS_AT_ONCE):
            yield [shard if shard.stands else ends.of(shard) for shard in shards]


def _scored(work: Uncovered, shards: Sequence[DecidedShard], criteria: Criteria, is_refiltered: bool) -> pa.Table:
    """Return the samples of shards as DECIDED, with scores and hashes, and decided by filters if `is_refiltered`."""
    rows = decided_rows(shards)
    tables = {shard.entry.shard.id: [path for _, path in tables_in(shard.commit)] for shard in shards}
    facts = read_facts(work.ledger.storage, rows, tables, criteria)
    if is_refiltered:
        is_new = pc.equal(rows["since"], 0)
        for name, column in zip(("outcome", "reasons"), by_filters(rows, facts, criteria.filters), strict=True):
            rows = rows.set_column(rows.schema.get_field_index(name), name, pc.if_else(is_new, column, rows[name]))
    return with_facts(rows, facts, criteria)


def with_facts(rows: pa.Table, facts: pa.Table, criteria: Criteria) -> pa.Table:
    """Return samples with the columns score and phash, as far as dataset-wide rules use them."""
    nulls = pa.nulls(len(rows), pa.string())
    best = criteria.keep_best
    score = nulls.cast(pa.float64()) if best is None else score_of(facts, best.by)
    phash = nulls if criteria.max_distance is None else facts["phash"]
    return rows.append_column("score", score).append_column("phash", phash)


def _held(
    storage: Storage, shards: Sequence[ShardRows], touched: Mapping[str, set[str]], criteria: Criteria
) -> pa.Table:
    """Return the kept samples of shards of the latest version as HELD: of `touched` shards only those that stand."""
    parts, lacking = [], []
    for shard in shards:
        kept = shard.samples.filter(pc.equal(shard.samples["outcome"], "kept"))
        kept = kept.append_column("number", pa.array(range(len(kept)), pa.int32()))
        if shard.shard in touched:
            kept = kept.filter(pc.is_in(kept["id"], pa.array(sorted(touched[shard.shard]), pa.string())))
        lacking.append(kept["phash"].null_count > 0)
        parts.append(kept)
    if criteria.max_distance is not None and any(lacking):
        tables = {s.shard: [file.path for file in s.files if file.outcome == "kept"] for s in shards}
        rows = pa.concat_tables(part for part, lacks in zip(parts, lacking, strict=True) if lacks)
        facts = read_facts(storage, rows, tables, Criteria(criteria.filters))
        parts = [part for part, lacks in zip(parts, lacking, strict=True) if not lacks]
        parts.append(rows.set_column(rows.schema.get_field_index("phash"), "phash", facts["phash"]))
    return pa.concat_tables(parts).select(HELD.names) if parts else HELD.empty_table()


def decided_rows(shards: Sequence[DecidedShard]) -> pa.Table:
    """Return the samples of shards that count as columns of DECIDED, without scores and hashes."""
    samples = [sample for shard in shards for sample in shard.decided.values()]
    lengths = [len(shard.decided) for shard in shards]
    plans = np.repeat([shard.entry.plan for shard in shards], lengths)
    places = np.repeat([shard.entry.position for shard in shards], lengths)
    columns = {
        "plan": pa.array(plans, pa.int32()),
        "place": pa.array(places, pa.int64()),
        "number": numbers_in(lengths),
    }
    for name in ("shard", "id", "since", "outcome", "reasons", "made", "made_reasons"):
        columns[name] = pa.array([getattr(sample, name) for sample in samples], DECIDED.field(name).type)
    return pa.table(columns)


def numbers_in(lengths: Sequence[int]) -> pa.Array:
    """Return the number of each row in its part, for parts of these lengths."""
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths) if lengths else np.array([], np.int64)
    return pa.array(np.arange(sum(lengths)) - starts, pa.int32())


class Ends:
    """Where samples end, read in the order of the plan."""

    COLUMNS = ("plan", "place", "id", "shard", "outcome", "reasons", "made", "made_reasons", "since", "phash")

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        """batches: with columns of DECIDED, in the order of the plan."""
        self._rows = itertools.chain.from_iterable(
            zip(*(batch[name].to_pylist() for name in self.COLUMNS), strict=True) for batch in batches
        )
        self._next: tuple[Any, ...] | None = next(self._rows, None)

    def of(self, shard: DecidedShard) -> DecidedShard:
        """Return a shard with its decisions. It must come after all shards that were asked for before."""
        decided: dict[str, Decided] = {}
        hashes: dict[str, str] = {}
        place = shard.entry.plan, shard.entry.position
        while self._next is not None and self._next[:2] == place:
            _, _, identifier, shard_id, outcome, reasons, made, made_reasons, since, phash = self._next
            decided[identifier] = Decided(
                identifier, shard_id, outcome, tuple(reasons or ()), made, tuple(made_reasons or ()), since
            )
            if phash is not None:
                hashes[identifier] = phash
            self._next = next(self._rows, None)
        return replace(shard, decided=decided, hashes=hashes)


def with_standing(work: Uncovered, shards: Sequence[CountedShard]) -> list[DecidedShard]:
    """Return shards with the decisions of their commits, or of the latest version where these stand."""
    before = work.before.shards([shard.entry.shard.id for shard in shards]).values()
    stand = {s.key: (s.since, s.outcome, s.reasons) for shard in before for s in decisions_in(shard)}
    decided = []
    for shard in shards:
        shard_id, ends = shard.entry.shard.id, dict[str, Decided]()
        for sample in (judged.sample for judged in shard.samples if judged.counts):
            since, outcome, reasons = stand.get((sample.id, shard_id), (0, sample.outcome, sample.reasons))
            ends[sample.id] = Decided(sample.id, shard_id, outcome, reasons, sample.outcome, sample.reasons, since)
        rows = [(judged.sample, judged.row) for judged in shard.samples]
        decided.append(DecidedShard(shard.entry, shard.commit, rows, ends))
    return decided


def decisions_in(shard: ShardRows) -> list[Decided]:
    """Return the samples of a shard of a version that count."""
    table = shard.samples.filter(pc.greater(shard.samples["since"], 0))
    columns = (table[name].to_pylist() for name in ("id", "since", "outcome", "reasons", "made", "made_reasons"))
    return [
        Decided(identifier, shard.shard, outcome, tuple(reasons or ()), made, tuple(made_reasons or ()), since)
        for identifier, since, outcome, reasons, made, made_reasons in zip(*columns, strict=True)
    ]


def decision_tables(storage: Storage, version: Version, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield where the samples of a version end, as columns of SAMPLES. Raises FileNotFoundError once it is pruned."""
    if version.has_segments:
        yield from version.content.samples(columns)
        return
    table = read_outcomes(storage, version)
    yield table.append_column("since", pa.array([version.number] * len(table), pa.int32())).select(list(columns))
