"""Check what a version says of its samples against the commits, some shards at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jointdit.errors import JointDiTError
from pipelines.dataset.decide import with_facts
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.scored import by_filters, read_facts
from pipelines.dataset.settling import DECIDED, ORDER, SETTLED, Settling
from pipelines.dataset.validation.parts import Part
from pipelines.dataset.validation.recount import Recount
from pipelines.dataset.validation.scope import AT_ONCE
from pipelines.dataset.validation.waiting import Waiting
from pipelines.ledger.before import Before
from pipelines.ledger.entries import OUTCOMES
from pipelines.ledger.segments import SAMPLES, ShardRows
from pipelines.ledger.versions import Version, is_over_the_set, verdicts_at
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.storage import Storage

END = ["id", "outcome", "shard"]


@dataclass
class Content:
    """The check of one version."""

    storage: Storage
    version: Version
    connection: duckdb.DuckDBPyConnection
    criteria: Criteria
    is_quick: bool
    is_undetermined: bool  # whether it is not known what the version must contain
    waiting: Waiting | None = None  # the rows of which it decides nothing new
    counts: Counter[str] = field(default_factory=Counter)
    withheld: int = 0  # samples of such rows

    def __post_init__(self) -> None:
        self._before = Before(self.storage, self.version)
        held = self.version.held_outcomes
        self._held = verdicts_at(self.storage, held) if held else {}  # of versions of format 1 and 2
        self.connection.execute("create table version_ids (hash ubigint)")

    def check(self, parts: Callable[[], Iterable[Part]], recount: Recount | None) -> Iterator[str]:
        """Check the samples and files of the version.

        Args:
            parts: yields all shards of its plan files.
            recount: finds which samples count; None where they cannot be determined.
        """
        if recount is not None and self.criteria.needs_all and not self.is_undetermined:
            yield from self._settle(parts(), recount)
        seen: list[pa.Array] = []
        for part in parts():
            seen.append(pa.array(part.shards, pa.string()))
            counted = None
            if recount is not None and not self.is_undetermined:
                counted = self._settled(part) if self.criteria.needs_all else recount.counted(part.samples)
            yield from self._check_part(part, counted, self._shards_of(part), is_settled=self.criteria.needs_all)
        planned = pa.chunked_array(seen, pa.string()).combine_chunks() if seen else pa.array([], pa.string())
        for other in self._others(planned):
            empty = Part([shard.shard for shard in other], DECIDED.empty_table())
            yield from self._check_part(empty, empty.samples if recount else None, other, is_settled=True)
        if recount is not None and not self.is_undetermined and self.withheld != self.version.withheld:
            waits = f"{self.withheld} samples wait for others of their rows"
            yield f"{waits}, and version {self.version.number} says {self.version.withheld}."
        yield from self._check_sums()

    def _others(self, planned: pa.Array) -> Iterator[list[ShardRows]]:
        """Yield the shards of the version that no plan file has."""
        if self._before.is_old:
            known = set(planned.to_pylist())
            yield [shard for shard in self._before.all_shards() if shard.shard not in known]
            return
        ids = self._before.covered
        others = ids.filter(pc.invert(pc.is_in(ids, value_set=planned))).to_pylist()
        for start in range(0, len(others), AT_ONCE):
            yield list(self._before.shards(others[start : start + AT_ONCE]).values())

    def _check_part(
        self, part: Part, counted: pa.Table | None, shards: Sequence[ShardRows], is_settled: bool
    ) -> Iterator[str]:
        actual = _counted_of(shards)
        self.counts.update(actual["outcome"].to_pylist())
        if len(actual):
            self.connection.register("rows_to_add", actual)
            self.connection.execute("insert into version_ids select hash(id) from rows_to_add")
            self.connection.unregister("rows_to_add")
        if counted is not None and not self.is_undetermined:
            try:
                yield from self._compare_outcomes(
                    counted if is_settled else self._decide(part, counted, actual), actual
                )
            except (JointDiTError, OSError, pa.ArrowException, KeyError) as error:
                yield self._undetermined(error)
        yield from self._compare_files(actual, shards)
        if not self.is_quick:
            yield from self._check_ids(actual, shards)

    def _undetermined(self, error: Exception) -> str:
        self.is_undetermined = True
        return undetermined(self.version, error)

    def _decide(self, part: Part, samples: pa.Table, actual: pa.Table) -> pa.Table:
        """Decide samples that count by the criteria of the version, and let earlier decisions stand as far as allowed.

        A decision that stands is accepted only where the sample's commit, or its scores, allow it.
        """
        outcomes, reasons = samples["made"].combine_chunks(), samples["made_reasons"].combine_chunks()
        facts = pa.table({})
        if self.version.refilter or self.criteria.needs_all:
            facts = read_facts(self.storage, samples, part.tables, self.criteria)
        if self.version.refilter:
            outcomes, reasons = by_filters(samples, facts, self.criteria.filters)
        ends, since = outcomes.to_numpy(zero_copy_only=False).copy(), np.zeros(len(samples), np.int32)
        for place, first, outcome in self._standing(samples, actual, outcomes):
            ends[place], since[place] = outcome, first
        rows = samples.select(["plan", "place", "number", "shard", "id", "made", "made_reasons"])
        for name, column in (("since", since), ("outcome", pa.array(ends, pa.string())), ("reasons", reasons)):
            rows = rows.append_column(DECIDED.field(name), pa.array(column, DECIDED.field(name).type))
        return with_facts(rows, facts, self.criteria) if self.criteria.needs_all else rows

    def _standing(self, samples: pa.Table, actual: pa.Table, outcomes: pa.Array) -> Iterator[tuple[int, int, str]]:
        """Yield (place, version that decided, outcome) of samples whose earlier decision is accepted."""
        if self._held:
            keys = zip(samples["id"].to_pylist(), samples["shard"].to_pylist(), outcomes.to_pylist(), strict=True)
            for place, (identifier, shard, made) in enumerate(keys):
                outcome, reasons = self._held.get((identifier, shard), ("", ()))
                if outcome and _agrees(made, outcome, reasons):
                    yield place, self.version.held, outcome
        if self._before.is_old:
            return
        old = actual.filter(pc.less(actual["since"], self.version.number))
        places = pc.index_in(_keys(old), value_set=_keys(samples)).to_pylist()
        made = outcomes.to_pylist()
        columns = (old[name].to_pylist() for name in ("since", "outcome", "reasons"))
        for place, since, outcome, reasons in zip(places, *columns, strict=True):
            if place is not None and _agrees(made[place], outcome, reasons or ()):
                yield place, since, outcome

    def _settle(self, parts: Iterable[Part], recount: Recount) -> Iterator[str]:
        """Compare all samples with each other, in the table `ends`."""
        settling = Settling(self.connection)
        try:
            for part in parts:
                actual = _counted_of(self._shards_of(part))
                counted = self._without_waiting(recount.counted(part.samples), actual)
                settling.add("decided", self._decide(part, counted, actual))
        except (JointDiTError, OSError, pa.ArrowException, KeyError) as error:
            yield self._undetermined(error)
            return
        settling.settle(self.criteria, self.version.spec.task)
        self.connection.execute(f"create table ends as {SETTLED} order by {ORDER}")

    def _without_waiting(self, samples: pa.Table, actual: pa.Table) -> pa.Table:
        """Return samples without those that wait for others of their rows, and that no earlier version decided."""
        if self.waiting is None:
            return samples
        old = actual.filter(pc.less(actual["since"], self.version.number))
        stands = pc.is_in(_keys(samples), value_set=_keys(old)).to_numpy(zero_copy_only=False)
        waits = self.waiting.mask(samples) & ~stands
        self.withheld += int(np.count_nonzero(waits))
        return samples.filter(pa.array(~waits))

    def _settled(self, part: Part) -> pa.Table:
        if not len(part.samples):
            return DECIDED.empty_table()
        plan, first, last = part.samples["plan"][0], part.samples["place"][0], part.samples["place"][-1]
        sql = f"select * from ends where plan = {plan} and place between {first} and {last} order by {ORDER}"
        return self.connection.sql(sql).to_arrow_table()

    def _shards_of(self, part: Part) -> list[ShardRows]:
        found = self._before.shards(part.shards)
        return [found[shard] for shard in part.shards if shard in found]

    def _compare_outcomes(self, decided: pa.Table, actual: pa.Table) -> Iterator[str]:
        """Check that the version has the samples that count, each with the outcome of its commit or the criteria."""
        if all(decided[name].combine_chunks().equals(actual[name].combine_chunks()) for name in END):
            return
        expected, there = (Counter(zip(*(t[name].to_pylist() for name in END), strict=True)) for t in (decided, actual))
        number = self.version.number
        is_by_commits = not self.version.refilter and not self.criteria.needs_all
        by = "in the commit" if is_by_commits else "by the stored scores"
        for identifier, outcome, shard in expected - there:
            yield f"sample {identifier} is {outcome} {by} of shard {shard} and not so in version {number}."
        for identifier, outcome, shard in there - expected:
            yield (
                f"sample {identifier} is {outcome} in version {number} and not so {by} of shard {shard}, "
                "if that counts."
            )

    def _compare_files(self, actual: pa.Table, shards: Sequence[ShardRows]) -> Iterator[str]:
        """Check that the files that the version names, which readers see, are those that its outcomes name."""
        named = Counter({(f.path, f.outcome, shard.shard): f.rows for shard in shards for f in shard.files})
        groups = actual.group_by(["file", "outcome", "shard"]).aggregate([([], "count_all")]).to_pylist()
        held = Counter({(row["file"], row["outcome"], row["shard"]): row["count_all"] for row in groups})
        for path, outcome, shard in (named - held) + (held - named):
            yield (
                f"version {self.version.number} names {path} for {named[path, outcome, shard]} {outcome} samples of "
                f"shard {shard}, its outcomes for {held[path, outcome, shard]}."
            )

    def _check_ids(self, actual: pa.Table, shards: Sequence[ShardRows]) -> Iterator[str]:
        """Check that the tables of shards hold the samples that the version says."""
        ids_by_file: dict[str, Counter[str]] = {file.path: Counter() for shard in shards for file in shard.files}
        for file, identifier in zip(actual["file"].to_pylist(), actual["id"].to_pylist(), strict=True):
            ids_by_file.setdefault(file, Counter())[identifier] += 1
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            for problems in pool.map(lambda item: list(_compare_ids(self.storage, *item)), ids_by_file.items()):
                yield from problems

    def _check_sums(self) -> Iterator[str]:
        """Check that each id occurs once, and the counts of the version."""
        number, run = self.version.number, self.connection.execute
        doubled = {
            hash_ for (hash_,) in run("select hash from version_ids group by hash having count(*) > 1").fetchall()
        }
        if doubled:
            self.connection.register("doubled", pa.table({"hash": pa.array(sorted(doubled), pa.uint64())}))
            ids = Counter[str]()
            for shard in self._before.all_shards():
                self.connection.register("rows_to_add", _counted_of([shard]))
                ids.update(i for (i,) in run("select id from rows_to_add where hash(id) in (from doubled)").fetchall())
            for identifier, count in ids.items():
                if count > 1:
                    yield f"sample {identifier} occurs more than once in version {number}."
        if {outcome: self.counts[outcome] for outcome in OUTCOMES} != self.version.counts:
            yield f"version {number} counts {self.version.counts} and its outcomes hold {dict(self.counts)}."


def undetermined(version: Version, error: Exception) -> str:
    """Say that it is not known what a version must contain, and why."""
    return f"what version {version.number} must contain cannot be determined ({type(error).__name__}: {error})."


def _counted_of(shards: Sequence[ShardRows]) -> pa.Table:
    """Return the samples of shards of a version that count."""
    samples = pa.concat_tables([shard.samples for shard in shards]) if shards else SAMPLES.empty_table()
    return samples.filter(pc.greater(samples["since"], 0)).combine_chunks()


def _keys(samples: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(samples["shard"], samples["id"], "\n").combine_chunks()


def _agrees(made: str, outcome: str, reasons: Sequence[str]) -> bool:
    """Return whether an earlier verdict can follow from what a commit, or the filters, say of a sample."""
    return outcome == made or (made == "kept" and is_over_the_set(outcome, reasons))  # type: ignore[arg-type]


def _compare_ids(storage: Storage, path: str, expected: Mapping[str, int]) -> Iterator[str]:
    try:
        with storage.open(path) as file:
            actual = Counter(pq.read_table(file, columns=["id"])["id"].to_pylist())
    except FileNotFoundError:
        return  # reported with the objects
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: its ids cannot be read ({type(error).__name__})."
        return
    wanted = Counter(expected)
    for identifier in wanted - actual:
        yield f"{path}: sample {identifier} is lost."
    for identifier in actual - wanted:
        yield f"{path}: sample {identifier} is there and should not be."
