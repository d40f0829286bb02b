"""What commits say of the rows that count, as columns, some shards at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.validation.recount import SEEN
from pipelines.dataset.validation.scope import CountedVersions, Tables
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome
from pipelines.ledger.ledger import Ledger
from pipelines.records import Span


@dataclass
class Part:
    """Some shards of one plan file, and what their commits say."""

    shards: list[str]
    samples: pa.Table  # SEEN
    tables: dict[str, list[str]] = field(default_factory=dict)  # shard -> paths of its tables of samples with pixels


def planned_again(ledger: Ledger, tables: Tables, versions: CountedVersions | None = None) -> set[tuple[int, int]]:
    """Return where shards are planned that are planned elsewhere too, as a file that was restored is.

    Args:
        versions: the versions of files that count. A shard is taken where it has rows of them, else where it is last.

    Returns:
        (plan, position) of all places but one of each shard.
    """
    ids = ids_of(tables)
    counts = pc.value_counts(ids)
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    taken: dict[str, tuple[int, int]] = {}
    others: set[tuple[int, int]] = set()
    for number, table in tables.items() if len(several) else ():
        places = pc.indices_nonzero(pc.is_in(table["shard"], several)).to_pylist()
        for entry in ledger.entries(number, places):
            place = number, entry.position
            before = taken.get(entry.shard.id)
            if before is None or versions is None or versions.has_any(entry):
                taken[entry.shard.id] = place
            if before is not None:
                others.add(before if taken[entry.shard.id] == place else place)
    return others


def ids_of(tables: Tables) -> pa.ChunkedArray:
    """Return the ids of all shards of plan files (n)."""
    return pa.chunked_array([chunk for table in tables.values() for chunk in table["shard"].chunks], pa.string())


def part_of(entries: Sequence[PlannedShard], commits: Mapping[str, Commit], versions: CountedVersions) -> Part:
    """Return what the commits of some shards say of rows of the versions of files that count."""
    columns: dict[str, list[Any]] = {name: [] for name in SEEN.names}
    shards, tables = [], {}
    for entry in entries:
        shard = entry.shard.id
        shards.append(shard)
        if shard not in commits:
            continue
        commit, spans = commits[shard], entry.shard.spans
        masks = [versions.rows_of(entry, span).tolist() for span in spans]
        found = [(n, s, spans[s.span]) for n, s in enumerate(commit.samples) if _is_planned(s, spans, masks)]
        rows = [sample.id.rpartition("/")[0] for _, sample, _ in found]
        columns["plan"].append(np.full(len(found), entry.plan))
        columns["place"].append(np.full(len(found), entry.position))
        columns["round"].append(np.full(len(found), entry.shard.round))
        columns["retry"].append(np.full(len(found), entry.retry))
        columns["shard"].append([shard] * len(found))
        columns["number"].append([number for number, _, _ in found])
        columns["row"].append(rows)
        columns["id"].append([sample.id for _, sample, _ in found])
        columns["made"].append([sample.outcome for _, sample, _ in found])
        columns["made_reasons"].append([sample.reasons or None for _, sample, _ in found])
        columns["file"].append([versions.files[span.uri] for _, _, span in found])
        columns["of_plan"].append([versions.plans[span.uri][1] for _, _, span in found])
        columns["version"].append([versions.numbers[span.uri, span.etag] for _, _, span in found])
        columns["position"].append([sample.position for _, sample, _ in found])
        columns["index"].append([sample.index for _, sample, _ in found])
        columns["is_again"].append([span.uri in versions.again for _, _, span in found])
        columns["is_default"].append(
            [
                row == f"{span.relative_path}:{sample.position}"
                for row, (_, sample, span) in zip(rows, found, strict=True)
            ]
        )
        tables[shard] = [o.path for o in commit.objects if o.kind == "table" and o.outcome != "quarantined"]
    samples = {f.name: pa.array(list(chain.from_iterable(columns[f.name])), f.type) for f in SEEN}
    return Part(shards, pa.table(samples, schema=SEEN), tables)


def _is_planned(sample: SampleOutcome, spans: Sequence[Span], masks: Sequence[Sequence[bool]]) -> bool:
    """Return whether a sample is of a row of its shard, and of one that counts (`masks`, by span)."""
    if sample.span >= len(spans):
        return False
    place, mask = sample.position - spans[sample.span].start, masks[sample.span]
    return 0 <= place < len(mask) and mask[place]
