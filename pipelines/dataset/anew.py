"""Decide all samples of a dataset again from their stored scores, in bounded memory (refilter.py).

Shards are read some at a time, and their samples decided by the filters. Where samples are compared with each other, or
a version with these criteria exists whose decisions may stand, all of them lie in a DuckDB database (settling.py);
otherwise those of the shards in which a decision changes.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.dataset.decide import DecidedShard, Ends, decided_rows, decision_tables, numbers_in, with_facts
from pipelines.dataset.decisions import Criteria, tables_in
from pipelines.dataset.scored import Lacking, by_filters, read_facts, slices_of
from pipelines.dataset.settling import DECIDED, ORDER, PLACE, SETTLED, Settling
from pipelines.ledger.changes import SHARDS_AT_ONCE
from pipelines.ledger.counted import Uncovered
from pipelines.ledger.segments import ShardRows
from pipelines.ledger.together import entries_of
from pipelines.ledger.versions import OVER_THE_SET, Version, read_version, version_numbers
from pipelines.records import RowKey
from pipelines.store.shelf import chunks_of
from pipelines.store.storage import Storage

EARLIER = ["id", "shard", "since", "outcome", "reasons"]
RULES = ", ".join(f"'{name}'" for name in OVER_THE_SET)
# whether a verdict can follow from what the filters say now: the same, or a rejection only by dataset-wide rules
AGREES = f"""earlier.outcome = decided.outcome or (decided.outcome = 'kept' and earlier.outcome = 'rejected'
    and len([r for r in coalesce(earlier.reasons, []) if split_part(r, ':', 1) not in ({RULES})]) = 0)"""


class Anew:
    """The decisions of one refilter on top of one version."""

    def __init__(
        self, settling: Settling, storage: Storage, criteria: Criteria, waiting: Collection[RowKey] = ()
    ) -> None:
        """waiting: rows whose samples are withheld, unless an earlier version with these criteria decided them."""
        self.settling, self.storage, self.criteria, self.waiting = settling, storage, criteria, waiting
        self._lacking = Lacking(criteria)
        self._earlier = list(_decided_by(storage, criteria))
        self._keeps_all = criteria.needs_all or bool(self._earlier)
        self._came_back: Counter[str] = Counter()  # in shards that are not in the database
        settling.connection.execute("create table fresh (plan integer, place bigint)")
        settling.connection.execute("create table waiting (plan integer, place bigint, number integer)")

    def add_new(self, shards: Sequence[DecidedShard]) -> None:
        """Decide the samples of shards that the latest version does not cover as they are."""
        rows = decided_rows(shards)
        if self.waiting:
            self._add_waiting(rows, itertools.chain.from_iterable(_rows_of(shard) for shard in shards))
        places = [(shard.entry.plan, shard.entry.position) for shard in shards]
        plans, numbers = zip(*places, strict=True) if places else ((), ())
        fresh = {"plan": pa.array(plans, pa.int32()), "place": pa.array(numbers, pa.int64())}
        self.settling.add("fresh", pa.table(fresh))
        tables: dict[str, list[str]] = {}
        for shard in shards:
            tables[shard.entry.shard.id] = [path for _, path in tables_in(shard.commit)]
        self._add(rows, tables, is_new=True)

    def add_covered(self, shards: Sequence[ShardRows]) -> None:
        """Decide the samples of shards of the latest version."""
        parts = [shard.samples.filter(pc.greater(shard.samples["since"], 0)) for shard in shards]
        rows = pa.concat_tables(parts).combine_chunks()
        rows = rows.append_column("number", numbers_in([len(part) for part in parts]))
        if self.waiting:
            columns = (rows[name].to_pylist() for name in ("uri", "etag", "position"))
            self._add_waiting(rows, zip(*columns, strict=True))
        tables = {s.shard: [file.path for file in s.files if file.outcome != "quarantined"] for s in shards}
        self._add(rows, tables, is_new=False)

    def _add(self, rows: pa.Table, tables: Mapping[str, Sequence[str]], is_new: bool) -> None:
        facts = read_facts(self.storage, rows, tables, self.criteria)
        self._lacking.look_at(rows, facts)
        outcomes, reasons = by_filters(rows, facts, self.criteria.filters)
        columns = {name: rows[name] for name in ("plan", "place", "number", "shard", "id", "made", "made_reasons")}
        columns |= {"was": rows["outcome"], "was_reasons": rows["reasons"], "was_since": rows["since"]}
        columns |= {"outcome": outcomes, "reasons": reasons, "since": pa.array(np.zeros(len(rows), np.int32))}
        decided = with_facts(pa.table(columns), facts, self.criteria).select(DECIDED.names)
        if not (is_new or self._keeps_all):
            differs = _differs(decided)
            keeps = np.zeros(len(decided), bool)
            for _, start, count in slices_of(decided):
                keeps[start : start + count] = differs[start : start + count].any()
            self._came_back.update(_came_back(decided.filter(pa.array(~keeps)))["shard"].to_pylist())
            decided = decided.filter(pa.array(keeps))
        self.settling.add("decided", decided)

    def _add_waiting(self, samples: pa.Table, rows: Iterable[RowKey]) -> None:
        """Note those of some samples, of which `rows` are the rows, that wait for others of their rows."""
        places = [place for place, row in enumerate(rows) if row in self.waiting]
        self.settling.add("waiting", samples.select([field.name for field in PLACE]).take(pa.array(places, pa.int64())))

    def settle(self, task: str) -> None:
        """Let earlier decisions stand, and apply dataset-wide rules.

        Raises:
            PermanentError: samples lack a score that the criteria use.
        """
        self._lacking.refuse(self.storage.uri)
        self._let_earlier_stand()
        self._withhold()
        self.settling.settle(self.criteria, task)
        run = self.settling.connection.execute
        run(f"create table ends as {SETTLED}")
        run(
            """create table altered as select distinct plan, place, shard from ends
            where outcome <> was or coalesce(reasons, []) <> coalesce(was_reasons, [])
            union select distinct plan, place, shard from withheld"""
        )

    def _withhold(self) -> None:
        """Leave out the samples that wait, as far as no earlier decision of them stands."""
        run = self.settling.connection.execute
        run(
            f"""create table withheld as
            select {ORDER}, shard from decided semi join waiting using ({ORDER}) where since = 0"""
        )
        run(
            """delete from decided using withheld where decided.plan = withheld.plan
            and decided.place = withheld.place and decided.number = withheld.number"""
        )

    def _let_earlier_stand(self) -> None:
        """Let the decisions of the newest version that was decided wholly by these criteria stand.

        A version of a run may hold samples that were committed under other filters. Such a version does not qualify.
        """
        run = self.settling.connection.execute
        for version in self._earlier:
            run("create or replace table earlier (id varchar, shard varchar, since integer, outcome varchar, "
                "reasons varchar[])")  # fmt: skip
            try:
                for table in decision_tables(self.storage, version, EARLIER):
                    self.settling.add("earlier", table)
            except FileNotFoundError:
                continue  # pruned since the versions were listed
            ((others,),) = run(
                f"select count(*) from decided join earlier using (id, shard) where not ({AGREES})"
            ).fetchall()
            if not others:
                run(
                    """create or replace table stands as select decided.* replace (
                        coalesce(earlier.since, decided.since) as since,
                        coalesce(earlier.outcome, decided.outcome) as outcome,
                        if(earlier.id is null, decided.reasons, earlier.reasons) as reasons)
                    from decided left join earlier using (id, shard)"""
                )
                run("drop table decided; alter table stands rename to decided")
                return

    def moved(self) -> Counter[str]:
        """Return how many samples moved: "kept -> rejected" -> samples."""
        sql = "select was, outcome, count(*) from ends where was_since > 0 and outcome <> was group by all"
        rows = self.settling.connection.execute(sql).fetchall()
        return Counter({f"{was} -> {outcome}": count for was, outcome, count in rows})

    def came_back(self) -> Counter[str]:
        """Return how many samples of each shard are kept and were rejected when they were made."""
        sql = "select shard, count(*) from ends where outcome = 'kept' and made = 'rejected' group by shard"
        return self._came_back + Counter(dict(self.settling.connection.execute(sql).fetchall()))

    def changed(self, work: Uncovered, new: Iterable[DecidedShard]) -> Iterator[list[DecidedShard]]:
        """Yield the shards that are new or have another decision, some at a time, in the order of the plan."""
        covered = self.settling.batches(
            "select plan, place, shard from altered anti join fresh using (plan, place) order by plan, place"
        )
        ends = Ends(
            self.settling.batches(
                f"""select * from ends semi join (select plan, place from altered union select plan, place from fresh)
                using (plan, place) order by {ORDER}"""
            )
        )
        counts = self.settling.connection.execute("select shard, count(*) from withheld group by shard").fetchall()
        withheld = dict(counts)
        places = ((row["plan"], row["place"], row["shard"]) for batch in covered for row in batch.to_pylist())
        fresh = ((shard.entry.plan, shard.entry.position, shard) for shard in new)
        merged = heapq.merge(places, fresh, key=lambda each: each[:2])
        for chosen in chunks_of(merged, SHARDS_AT_ONCE):
            known = _covered(work, [shard for _, _, shard in chosen if isinstance(shard, str)])
            shards = [known[shard] if isinstance(shard, str) else shard for _, _, shard in chosen]
            yield [replace(ends.of(shard), withheld=withheld.get(shard.entry.shard.id, 0)) for shard in shards]


def _rows_of(shard: DecidedShard) -> Iterator[RowKey]:
    """Yield the rows of the samples of a shard that count, in the order of `decided_rows`."""
    spans = shard.entry.shard.spans
    rows = {sample.id: (spans[sample.span], sample.position) for sample, _ in shard.rows}
    for span, position in (rows[identifier] for identifier in shard.decided):
        yield span.uri, span.etag, position


def _differs(decided: pa.Table) -> NDArray[np.bool_]:
    """Return which samples end otherwise than before (n)."""
    mask: NDArray[np.bool_] = pc.not_equal(decided["outcome"], decided["was"]).to_numpy().copy()
    places = np.flatnonzero(pc.not_equal(decided["outcome"], "kept").to_numpy())
    rows = decided.select(["reasons", "was_reasons"]).take(pa.array(places))
    pairs = zip(rows["reasons"].to_pylist(), rows["was_reasons"].to_pylist(), strict=True)
    mask[places] |= np.array([(now or []) != (before or []) for now, before in pairs], bool)
    return mask


def _came_back(decided: pa.Table) -> pa.Table:
    return decided.filter(pc.and_(pc.equal(decided["outcome"], "kept"), pc.equal(decided["made"], "rejected")))


def _decided_by(storage: Storage, criteria: Criteria) -> Iterator[Version]:
    """Yield the versions with these criteria, newest first."""
    for number in reversed(version_numbers(storage)):
        version = read_version(storage, number)
        if version.criteria == criteria.to_json():
            yield version


def _covered(work: Uncovered, shards: Sequence[str]) -> dict[str, DecidedShard]:
    """Return covered shards, with the samples of their commits that the latest version has rows of."""
    old = work.before.shards(shards)
    commits = work.ledger.read_commits(shards)
    covered = {}
    for entry in entries_of(work.ledger, old):
        row_of = dict(
            zip(*(old[entry.shard.id].samples[name].to_pylist() for name in ("id", "row")), strict=True),
        )
        commit = commits[entry.shard.id]
        rows = [(sample, row_of[sample.id]) for sample in commit.samples if sample.id in row_of]
        covered[entry.shard.id] = DecidedShard(entry, commit, rows, {})
    return covered
