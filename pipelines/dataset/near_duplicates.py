"""Find near-duplicates among the kept samples of a dataset in bounded memory, with DuckDB.

A sample is rejected if its hash is within `max_distance` bits of a sample that was kept before it. Held samples come
first, in the order of the plan, and stay. New samples follow, in the order of the plan.

How pairs are found: the bits are divided into blocks. Two hashes that differ in at most `max_distance` bits agree in
all blocks but as many. So for each choice of blocks but `max_distance`, a join on the bits of the chosen blocks yields
candidates, whose distance is then computed (Manku, Jain and Das Sarma, Detecting near-duplicates for web crawling, WWW
2007). A pair counts only in the join of the first blocks that agree, so each pair is found once. More blocks mean more
joins with fewer candidates; a sample of the hashes decides.

How pairs stay few: equal hashes are joined once. Where new samples have more than MOST_PAIRS pairs, the earlier quarter
of them is decided first, and later samples that resemble its kept ones are rejected before they are compared with each
other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.quality.near_duplicate import BITS

MOST_PAIRS = 1 << 25  # pairs of new samples that are sorted at once
MOST_EQUAL_BLOCKS = 6  # of one join
SAMPLED = 1 << 16  # hashes that the number of blocks is estimated from
SECONDS_PER_JOIN, SECONDS_PER_HASH, SECONDS_PER_CANDIDATE = 4e-3, 1e-7, 3e-8  # of CPU time, measured
HELD = 1 << 40  # more than any order; the place of a held sample is its order minus this
SIGNED = "(hash & 9223372036854775807)::bigint | if(hash > 9223372036854775807, -9223372036854775808, 0)::bigint"


def near_duplicates(
    connection: duckdb.DuckDBPyConnection,
    candidates: str,
    max_distance: int,
    *,
    same_row_is_no_duplicate: bool,
) -> duckdb.DuckDBPyRelation:
    """Return the new samples that resemble a kept one: "order" BIGINT, distance TINYINT in bits, nearest BIGINT.

    `nearest` is the order of the kept sample with the smallest distance; of several, held ones go first, then the
    order decides. The relation reads the table near_duplicates, which the next call replaces.

    Args:
        connection: A connection from store/joins.py. Its tables named near_... are replaced.
        candidates: A table, view or table function of the connection with the samples that are kept so far: "order"
            BIGINT, the place in the plan, distinct, at least 0 and less than HELD; hash UBIGINT, null for samples that
            are not compared; row of any type; is_held BOOLEAN, whether an earlier decision stands.
        max_distance: Bits that may differ between duplicates.
        same_row_is_no_duplicate: Whether samples of equal `row` are not compared.
    """
    search = _Search(connection, max_distance, same_row_is_no_duplicate)
    search.load(candidates)
    search.reject_near("near_held", "near_new")
    (end,) = search.one("select coalesce(max(place), 0) + 1 from near_new")
    search.settle(0, end)
    search.find_nearest()
    return connection.table("near_duplicates")


class Band(NamedTuple):
    """One join: pairs that agree in `mask` and differ in each of the masks `earlier`."""

    mask: int
    earlier: tuple[int, ...]


def bands(max_distance: int, blocks: int) -> Iterator[Band]:
    """Yield the joins that together find each pair of hashes within `max_distance` once.

    Neighbouring bits go to different blocks, because low frequencies alone differ little between similar images.
    """
    masks = _block_masks(blocks)
    for chosen in itertools.combinations(range(blocks), blocks - max_distance):
        earlier = [masks[block] for block in range(chosen[-1] if chosen else 0) if block not in chosen]
        yield Band(sum(masks[block] for block in chosen), tuple(earlier))


def choose_blocks(hashes: NDArray[np.int64], max_distance: int, left: int, right: int) -> int:
    """Return the number of blocks with the least estimated time to compare `left` hashes with `right` ones.

    Args:
        hashes: A sample of the hashes (n).
        max_distance: Bits that may differ between duplicates.
        left: Number of hashes on one side.
        right: Number of hashes on the other side.
    """
    costs = {}
    for blocks in range(max(1, max_distance), max_distance + MOST_EQUAL_BLOCKS + 1):
        masks, equal = _block_masks(blocks), blocks - max_distance
        largest, smallest = sum(masks[:equal]), sum(masks[max_distance:])
        share = (_share(hashes & _signed(largest)) + _share(hashes & _signed(smallest))) / 2
        seconds = SECONDS_PER_JOIN + SECONDS_PER_HASH * (left + right) + SECONDS_PER_CANDIDATE * share * left * right
        costs[blocks] = math.comb(blocks, equal) * seconds
    return min(costs, key=lambda blocks: costs[blocks])


def _block_masks(blocks: int) -> list[int]:
    return [sum(1 << bit for bit in range(block, BITS, blocks)) for block in range(blocks)]


def _share(keys: NDArray[np.int64]) -> float:
    """Return the share of equal pairs among all pairs of different places."""
    counts = np.unique(keys, return_counts=True)[1].astype(float)
    return float((counts * (counts - 1)).sum() / max(1, len(keys) * (len(keys) - 1)))


def _signed(mask: int) -> int:
    """Return 64 bits as DuckDB's BIGINT holds them."""
    return mask - (1 << BITS) if mask >> (BITS - 1) else mask


class _Search:
    """The tables of one search. Those that are read for each band are in the database's file, the others temporary.

    near_samples    all samples, with their place in the order of decision
    near_held       of each hash of held samples the first, and the first of another row
    near_new        new samples that may stay; at the end those that stay
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, max_distance: int, rows_matter: bool) -> None:
        self._run = connection.execute
        self._connection = connection
        self._max_distance = max_distance
        self._rows_matter = rows_matter

    def one(self, sql: str) -> tuple[int, ...]:
        """Return the only row of a query."""
        (row,) = self._run(sql).fetchall()
        return row

    def load(self, candidates: str) -> None:
        """Collapse equal hashes."""
        row = "row" if self._rows_matter else "place as row"
        self._run(
            f"""create or replace temp view near_samples as
            select "order", {SIGNED} as hash, "order" - if(is_held, {HELD}, 0) as place, {row}, is_held
            from {candidates} where hash is not null"""
        )
        for table, which, order in (("near_held", "is_held", ""), ("near_new", "not is_held", "order by place")):
            self._run(
                f"""create or replace table {table} as
                select hash, min(place) as place, arg_min(row, place) as row
                from near_samples where {which} group by hash {order}"""
            )
        if not self._rows_matter:
            return
        self._run(
            """insert into near_held by name
            select hash, min(other.place) as place, arg_min(other.row, other.place) as row
            from near_samples other join near_held using (hash)
            where other.is_held and other.row <> near_held.row group by hash"""
        )
        # Beside the first sample of a hash only a sample whose own row has another kept one can stay: what rejected the
        # first sample is of that row.
        self._run(
            """insert into near_new by name
            select hash, min(place) as place, row from near_samples
            where not is_held and row in (
                select row from near_samples group by row
                having min(hash) <> max(hash) or min(is_held) <> max(is_held))
            group by hash, row having min(place) not in (select place from near_new)"""
        )

    def reject_near(self, kept: str, new: str) -> None:
        """Remove those of the samples `new` from near_new that resemble samples `kept`, which all come before them."""
        for matches in self._matches(kept, new, "b.place"):
            self._run(f"delete from near_new where place in (select place from {matches})")

    def settle(self, first: int, end: int) -> None:
        """Leave in near_new, of the places [first, end), the samples that stay."""
        if self._find_pairs(_between(first, end)):
            self._reject_pairs(first, end)
            return
        middle = first + (end - first + 3) // 4
        self.settle(first, middle)
        self.reject_near(_between(first, middle), _between(middle, end))
        self.settle(middle, end)

    def find_nearest(self) -> None:
        """Write the table near_duplicates."""
        self._run(
            """create or replace temp table near_rejected as
            select "order", hash, row, place from near_samples anti join near_new using (hash, row)
            where not is_held"""
        )
        self._run("create or replace temp table near_rejected_hashes as select distinct hash from near_rejected")
        self._run("create or replace temp view near_kept as from near_held union all by name from near_new")
        self._run(
            "create or replace temp table near_found as select hash, 0 as distance, place, row from near_held limit 0"
        )
        for matches in self._matches(
            "near_rejected_hashes", "near_kept", "a.hash, b.place, b.row", of_other_rows=False
        ):
            self._run(f"insert into near_found by name select hash, distance, place, row from {matches}")
        # For a sample, the first within a distance that is of another row is one of the first two of different rows.
        self._run(
            """create or replace temp table near_firsts as
            select hash, distance, min(place) as place, arg_min(row, place) as row
            from near_found group by hash, distance"""
        )
        if self._rows_matter:
            self._run(
                """insert into near_firsts by name
                select hash, distance, min(other.place) as place, arg_min(other.row, other.place) as row
                from near_found other join near_firsts using (hash, distance)
                where other.row <> near_firsts.row group by hash, distance"""
            )
        self._run(
            f"""create or replace temp table near_duplicates as
            select "order", min(distance)::tinyint as distance,
                arg_min(kept.place + if(kept.place < 0, {HELD}, 0), distance * {2 * HELD} + kept.place) as nearest
            from near_rejected sample join near_firsts kept using (hash)
            where kept.row <> sample.row and kept.place < sample.place group by "order" """
        )
        rejected, explained = self.one(
            "select (select count(*) from near_rejected), (select count(*) from near_duplicates)"
        )
        assert rejected == explained, f"{rejected} samples are rejected, {explained} resemble a kept one"

    def _find_pairs(self, samples: str) -> bool:
        """Write all pairs of new samples within the distance to near_pairs; return False if they are too many."""
        self._run("create or replace temp table near_pairs (earlier bigint, later bigint)")
        free = MOST_PAIRS
        for matches in self._matches(samples, samples, "a.place as earlier, b.place as later"):
            sql = f"select earlier, later from {matches} and earlier < later limit {free + 1}"
            (count,) = self.one(f"insert into near_pairs {sql}")
            free -= count
            if free < 0:
                return False
        return True

    def _reject_pairs(self, first: int, end: int) -> None:
        """Go through near_pairs in the order of decision and remove later samples from near_new."""
        rejected = bytearray(end - first)  # by place
        pairs = self._connection.sql(
            f"select earlier - {first} as earlier, later - {first} as later from near_pairs order by later"
        )
        for batch in pairs.to_arrow_reader():
            for earlier, later in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                rejected[later] |= not rejected[earlier]
        places = np.flatnonzero(np.frombuffer(rejected, np.uint8)) + first
        self._connection.register("near_later", pa.table({"place": places}))
        self._run("delete from near_new where place in (select place from near_later)")
        self._connection.unregister("near_later")

    def _matches(self, left: str, right: str, columns: str, of_other_rows: bool = True) -> Iterator[str]:
        """Yield SQL to go after FROM for each band: `columns` and `distance` of the pairs of `left` a and `right` b.

        It ends in a WHERE. The LIMIT, which is never reached, keeps these conditions out of the join itself, where
        DuckDB would apply them to few pairs at a time: that takes twice the time.
        """
        sizes = [self.one(f"select count(*) from {table}")[0] for table in (left, right)]
        if not all(sizes):
            return
        sample = self._connection.sql(f"select hash from {right} using sample {SAMPLED} rows").fetchnumpy()["hash"]
        columns += ", xor(a.hash, b.hash) as difference, bit_count(difference) as distance"
        conditions = [f"distance <= {self._max_distance}"]
        if self._rows_matter and of_other_rows:
            columns += ", a.row as left_row, b.row as right_row"
            conditions.append("left_row <> right_row")
        for band in bands(self._max_distance, choose_blocks(sample, self._max_distance, *sizes)):
            mask = f"({_signed(band.mask)})::bigint"
            pairs = f"select {columns} from {left} a join {right} b on (a.hash & {mask}) = (b.hash & {mask})"
            earlier = [f"(difference & ({_signed(other)})::bigint) <> 0" for other in band.earlier]
            yield f"({pairs} limit {1 << 62}) where {' and '.join(conditions + earlier)}"


def _between(first: int, end: int) -> str:
    return f"(select hash, place, row from near_new where place >= {first} and place < {end})"
