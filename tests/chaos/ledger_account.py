"""What an output says of itself, read from its files alone: plan, commits, versions. Nothing of the engine is imported.

    _plan/*.parquet             every shard that was planned, in order
    _commits/<shard>.json       where each sample of a shard ended, and the objects that hold it
    _versions/<n>/version.json  a version: counts, files with sizes and SHA-256; and its outcomes, one row a sample

`expected_samples` is DESIGN 6 in a few lines: of each file the input version that was planned last, all its rounds, and
of a sample that was retried the last retry.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

Identity = tuple[str, str, int, int]  # uri, etag, row position, sample index


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of one input version."""

    uri: str
    etag: str
    path: str  # relative, as default ids have it
    start: int
    stop: int


@dataclass(frozen=True)
class Planned:
    """One shard of a plan file."""

    plan: int
    shard: str
    round: int
    retry: int
    indices: tuple[int, ...]
    spans: tuple[Rows, ...]

    @property
    def is_first(self) -> bool:
        """Whether it plans its rows for the first time."""
        return self.round == 0 and self.retry == 0

    def identities(self) -> Iterator[Identity]:
        """The samples that it makes."""
        for span in self.spans:
            for position in range(span.start, span.stop):
                for index in self.indices:
                    yield span.uri, span.etag, position, index


@dataclass(frozen=True)
class Committed:
    """One commit: its objects, and (id, outcome) of each sample."""

    shard: str
    objects: tuple[dict[str, Any], ...]
    samples: dict[Identity, tuple[str, str]]
    count: int  # of samples as they stand there
    counts: dict[str, int]


@dataclass(frozen=True)
class Published:
    """One version.json, and the rows of its outcomes."""

    number: int
    fields: dict[str, Any]
    outcomes: tuple[dict[str, Any], ...]

    @property
    def refilter(self) -> int:
        """The version that set the criteria for the whole dataset."""
        return int(self.fields.get("refilter", 0))

    @property
    def decisions(self) -> dict[tuple[str, str], str]:
        """(sample id, shard) -> outcome."""
        return {(row["id"], row["shard"]): row["outcome"] for row in self.outcomes}


def table_rows(data: bytes, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a Parquet file, with those of the columns that it has."""
    with pq.ParquetFile(io.BytesIO(data)) as file:
        present = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        rows: list[dict[str, Any]] = file.read(columns=present, use_threads=False).to_pylist()
        return rows


def read_plan(data: bytes, number: int) -> list[Planned]:
    """The shards of one plan file."""
    shards = []
    for row in table_rows(data):
        spans = tuple(Rows(s["uri"], s["etag"], s["relative_path"], s["start"], s["stop"]) for s in row["spans"])
        first = row["round"] * row["samples_per_row"]
        indices = tuple(row["indices"] or range(first, first + row["samples_per_row"]))
        shards.append(Planned(number, row["shard"], row["round"], row["retry"] or 0, indices, spans))
    return shards


def read_commit(data: bytes, planned: Planned) -> Committed:
    """The commit of a planned shard."""
    fields = json.loads(data)
    columns, samples = fields["samples"], {}
    letters = {"k": "kept", "r": "rejected", "q": "quarantined"}
    for name, number, position, index, letter in zip(
        columns["id"], columns["span"], columns["position"], columns["index"], columns["outcome"], strict=True
    ):
        span = planned.spans[number]
        samples[span.uri, span.etag, position, index] = name, letters[letter]
    return Committed(fields["shard"], tuple(fields["objects"]), samples, len(columns["id"]), fields["counts"])


def outcomes_name(number: int, fields: dict[str, Any]) -> str:
    """Where the outcomes of a version are: version.json says it; in older ones the name was always the same."""
    return str(fields.get("outcomes") or f"_versions/{number:06d}/outcomes.parquet")


def current_versions(planned: Sequence[Planned]) -> dict[str, tuple[str, int]]:
    """uri -> the etag that was planned last, and in which plan file; a span without rows says that none are left."""
    return {span.uri: (span.etag, entry.plan) for entry in planned if entry.is_first for span in entry.spans}


def expected_samples(planned: Sequence[Planned]) -> dict[Identity, set[str]]:
    """Every sample that a version of these plan files must have -> the shards that it may come from."""
    current = current_versions(planned)
    makers: dict[Identity, set[str]] = {}
    for entry in planned:
        for identity in entry.identities():
            etag, plan = current.get(identity[0], ("", 0))
            if identity[1] != etag or (entry.is_first and entry.plan != plan):
                continue
            if entry.retry:
                makers[identity] = {entry.shard}  # the last one supersedes what was before
            else:
                makers.setdefault(identity, set()).add(entry.shard)
    return makers


def follows(row: Mapping[str, Any], committed: str) -> bool:
    """Whether an outcome can follow from the commit's, where no refilter has decided anew."""
    return row["outcome"] == committed or (committed == "kept" and _lost_to_others(row))


def _lost_to_others(row: Mapping[str, Any]) -> bool:
    """Whether a sample is rejected by what needs the whole set."""
    reasons = row["reasons"] or []
    return row["outcome"] == "rejected" and all(r.startswith(("keep_best:", "near_duplicate:")) for r in reasons)


def is_by(criteria: Mapping[str, Any], row: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether a sample is kept, or rejected, by the criteria that hold for the whole dataset."""
    spans = [each["min_span"] for each in criteria["filters"] if each["kind"] == "depth_range"]
    passes = row["quality"]["depth_span"] >= max(spans, default=0)
    return passes if told["outcome"] == "kept" else (not passes or _lost_to_others(told))
