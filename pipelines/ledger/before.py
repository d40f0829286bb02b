"""What the latest version has: its shards with their samples and files.

A version of format 1 or 2 has no segments. It is read as one part, and the next version covers all shards anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.segments import SAMPLES, ShardRows, VersionFile
from pipelines.ledger.versions import Version, read_outcomes
from pipelines.store.storage import Storage


class Before:
    """The content of the latest version, or of none."""

    def __init__(self, storage: Storage, latest: Version | None) -> None:
        self.storage, self.latest = storage, latest
        self.is_old = latest is not None and not latest.has_segments

    @property
    def covered(self) -> pa.ChunkedArray:
        """The ids of the shards that its segments hold (n)."""
        if self.latest is None or self.is_old:
            return pa.chunked_array([pa.array([], pa.string())])
        return self.latest.content.ids

    @property
    def waiting(self) -> pa.Array:
        """The ids of the shards with samples that it withholds (n)."""
        if self.latest is None or not self.latest.withheld:
            return pa.array([], pa.string())
        tables = [table.filter(pc.greater(table["withheld"], 0)) for _, table in self.latest.content.shards]
        return pa.concat_tables(tables)["shard"].combine_chunks()

    @property
    def whole(self) -> pa.ChunkedArray:
        """The ids of those shards whose samples all count, or are withheld (n)."""
        if self.latest is None or self.is_old:
            return self.covered
        return self.latest.content.whole

    def shards(self, wanted: Collection[str]) -> dict[str, ShardRows]:
        """Return those of some shards that it has."""
        if self.latest is None or not wanted:
            return {}
        if self.is_old:
            return {shard: self._old_shard(shard) for shard in wanted if shard in self._slices}
        return {shard.shard: shard for shard in self.latest.content.of_shards(sorted(wanted))}

    def all_shards(self) -> Iterator[ShardRows]:
        """Yield all its shards."""
        if self.latest is None:
            return
        if self.is_old:
            yield from (self._old_shard(shard) for shard in self._slices)
        else:
            yield from self.latest.content.everything(self.latest.segments)

    @property
    def old_samples(self) -> int:
        """The number of its samples, if it is of format 1 or 2."""
        return len(self._old_table) if self.is_old else 0

    @cached_property
    def _old_table(self) -> pa.Table:
        assert self.latest is not None
        return read_outcomes(self.storage, self.latest).combine_chunks()

    @cached_property
    def _slices(self) -> dict[str, tuple[int, int]]:
        """Shard -> (first, number) of its rows, which lie together in (plan, position) order."""
        slices: dict[str, tuple[int, int]] = {}
        for place, shard in enumerate(self._old_table["shard"].to_pylist()):
            first, count = slices.get(shard, (place, 0))
            slices[shard] = first, count + 1
        return slices

    @cached_property
    def _old_files(self) -> dict[str, list[VersionFile]]:
        assert self.latest is not None
        files: dict[str, list[VersionFile]] = {}
        for file in self.latest.listed:
            files.setdefault(file.shard, []).append(file)
        return files

    def _old_shard(self, shard: str) -> ShardRows:
        assert self.latest is not None
        table = self._old_table.slice(*self._slices[shard])
        columns = {name: table[name] for name in table.column_names if name in SAMPLES.names}
        count = len(table)
        columns["row"] = table["source"]
        columns["since"] = pa.array([self.latest.number] * count, pa.int32())
        nulls = {f.name: pa.nulls(count, f.type) for f in SAMPLES if f.name not in columns}
        samples = pa.table({f.name: {**columns, **nulls}[f.name] for f in SAMPLES}, schema=SAMPLES)
        return ShardRows(shard, 0, 0, samples, tuple(self._old_files.get(shard, ())))
