"""Plan, commits and versions of an output, read from its files without any code of the engine.

    _plan/*.parquet             all planned shards, in order
    _commits/<shard>.json       the outcome of each sample of a shard, and the shard's objects
    _versions/<n>/version.json  a version: counts, files with sizes and SHA-256, the name of its outcomes

`expected_samples` defines the content of a version: for each file the last planned input version with all its rounds,
and for each retried sample the last retry. A version of a file has the rows that its plan file plans, and those that it
carries: they were made for an earlier version, and stay what they are (uri, etag, row position) there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

Identity = tuple[str, str, int, int]  # uri, etag, row position, sample index


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of one input version."""

    uri: str
    etag: str
    path: str  # relative, as in default ids
    start: int
    stop: int


@dataclass(frozen=True)
class CarriedRow:
    """A row of an input version that was made for an earlier one."""

    uri: str
    etag: str
    position: int
    made_etag: str
    made_position: int
    plan: int  # the plan file that planned it to be made


@dataclass(frozen=True)
class Planned:
    """One shard of a plan file."""

    plan: int
    shard: str
    round: int
    retry: int
    indices: tuple[int, ...]
    spans: tuple[Rows, ...]
    carried: tuple[CarriedRow, ...] = ()

    @property
    def is_first(self) -> bool:
        """Whether the shard plans its rows for the first time."""
        return self.round == 0 and self.retry == 0

    def identities(self) -> Iterator[Identity]:
        """Yield the samples of the shard."""
        for span in self.spans:
            for position in range(span.start, span.stop):
                for index in self.indices:
                    yield span.uri, span.etag, position, index


@dataclass(frozen=True)
class Committed:
    """One commit: its objects, and id and outcome of each sample."""

    shard: str
    objects: tuple[dict[str, Any], ...]
    samples: dict[Identity, tuple[str, str]]
    count: int  # samples in the file, also if an identity repeats
    counts: dict[str, int]


@dataclass(frozen=True)
class Published:
    """One version.json with the rows of its outcomes."""

    number: int
    fields: dict[str, Any]
    outcomes: tuple[dict[str, Any], ...]
    files: tuple[dict[str, Any], ...]
    covered: frozenset[str] | None = None  # the shards of a partial version; None: all

    @property
    def refilter(self) -> int:
        """The version that set the criteria for the whole dataset, or 0."""
        return int(self.fields.get("refilter", 0))

    @property
    def decisions(self) -> dict[tuple[str, str], str]:
        """(sample id, shard) -> outcome."""
        return {(row["id"], row["shard"]): row["outcome"] for row in self.outcomes}


def table_rows(data: bytes, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file, with those of the columns that it has."""
    with pq.ParquetFile(io.BytesIO(data)) as file:
        present = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        rows: list[dict[str, Any]] = file.read(columns=present, use_threads=False).to_pylist()
        return rows


def read_plan(data: bytes, number: int) -> list[Planned]:
    """Return the shards of one plan file."""
    shards = []
    for row in table_rows(data):
        spans = tuple(Rows(s["uri"], s["etag"], s["relative_path"], s["start"], s["stop"]) for s in row["spans"])
        first = row["round"] * row["samples_per_row"]
        indices = tuple(row["indices"] or range(first, first + row["samples_per_row"]))
        carried = tuple(_carried_rows(row, spans))
        shards.append(Planned(number, row["shard"], row["round"], row["retry"] or 0, indices, spans, carried))
    return shards


def _carried_rows(row: Mapping[str, Any], spans: Sequence[Rows]) -> Iterator[CarriedRow]:
    for run in row["carried"] or ():
        span, origin = spans[run["span"]], row["origins"][run["origin"]]
        for number in range(run["rows"]):
            places = run["at"] + number, origin["etag"], run["start"] + number
            yield CarriedRow(span.uri, span.etag, *places, origin["plan"])


def read_commit(data: bytes, planned: Planned) -> Committed:
    """Return the commit of a planned shard."""
    fields = json.loads(data)
    columns, samples = fields["samples"], {}
    letters = {"k": "kept", "r": "rejected", "q": "quarantined"}
    for name, number, position, index, letter in zip(
        columns["id"], columns["span"], columns["position"], columns["index"], columns["outcome"], strict=True
    ):
        span = planned.spans[number]
        samples[span.uri, span.etag, position, index] = name, letters[letter]
    return Committed(fields["shard"], tuple(fields["objects"]), samples, len(columns["id"]), fields["counts"])


def described_by(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the objects that describe a version, with their SHA-256."""
    names = {segment["path"]: segment["sha256"] for segment in fields["segments"]}
    return names | {segment["shards_path"]: segment["shards_sha256"] for segment in fields["segments"]}


def read_published(number: int, fields: dict[str, Any], read: Callable[[str], bytes]) -> Published:
    """Return a version with its samples and files; `read` returns the bytes of an object.

    Segments are listed oldest first, and a shard that says that it replaces another one hides all older ones.
    """
    samples: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    hidden: set[str] = set()
    covered: set[str] = set()
    for segment in reversed(fields["segments"]):
        shards = [row for row in table_rows(read(segment["shards_path"])) if row["shard"] not in hidden]
        live = {row["shard"] for row in shards}
        covered |= live
        for row in table_rows(read(segment["path"])):
            if row["shard"] in live and row["since"]:
                samples.append({**row, "source": row["id"].rpartition("/")[0]})
        files += [{**file, "shard": row["shard"]} for row in shards for file in row["files"]]
        hidden |= {row["shard"] for row in shards if row["replaces"]}
    covers = frozenset(covered) if fields["is_partial"] else None
    return Published(number, fields, tuple(samples), tuple(files), covers)


def current_versions(planned: Sequence[Planned]) -> dict[str, tuple[str, int]]:
    """Return uri -> last planned etag and its plan file; an empty span means that the file has no rows."""
    return {span.uri: (span.etag, entry.plan) for entry in planned if entry.is_first for span in entry.spans}


def counting_versions(planned: Sequence[Planned], covered: Collection[str] | None) -> dict[str, tuple[str, int]]:
    """Return uri -> the last version (etag, plan file) of which all shards are covered; if there is none, the last.

    `covered` are the shards of a partial version; None: all.
    """
    lacks: dict[tuple[str, str, int], set[str]] = {}
    for entry in planned if covered is not None else ():
        for span in entry.spans if entry.is_first else ():
            lacks.setdefault((span.uri, span.etag, entry.plan), set()).update({entry.shard} - set(covered or ()))
    whole = [version for version, shards in lacks.items() if not shards]
    return current_versions(planned) | {uri: (etag, plan) for uri, etag, plan in whole}


class CountedRows:
    """The rows of the versions of files that count."""

    def __init__(self, planned: Sequence[Planned], covered: Collection[str] | None = None) -> None:
        """`covered` are the shards of a partial version."""
        self.versions = counting_versions(planned, covered)
        rows = [r for entry in planned for r in entry.carried if self.versions[r.uri] == (r.etag, entry.plan)]
        self.carried = {(row.uri, row.made_etag, row.made_position): row for row in rows}  # as they were made

    def have(self, entry: Planned, uri: str, made_etag: str, position: int) -> bool:
        """Return whether a row of a shard is among them."""
        etag, plan = self.versions.get(uri, ("", 0))
        row = self.carried.get((uri, made_etag, position))
        is_carried = row is not None and (not entry.is_first or entry.plan == row.plan)
        return is_carried or (made_etag == etag and (not entry.is_first or entry.plan == plan))


def expected_samples(planned: Sequence[Planned], covered: Collection[str] | None = None) -> dict[Identity, set[str]]:
    """Return each sample that a version of these plan files must have -> the shards that it may come from.

    `covered` are the shards of a partial version.
    """
    rows, makers = CountedRows(planned, covered), dict[Identity, set[str]]()
    for entry in planned:
        if covered is not None and entry.shard not in covered:
            continue
        for identity in entry.identities():
            if not rows.have(entry, *identity[:3]):
                continue
            if entry.retry:
                makers[identity] = {entry.shard}  # a retry supersedes what was before
            else:
                makers.setdefault(identity, set()).add(entry.shard)
    return makers


def follows(row: Mapping[str, Any], committed: str) -> bool:
    """Return whether an outcome can follow from that of the commit, without a refilter."""
    return row["outcome"] == committed or (committed == "kept" and _lost_to_others(row))


def _lost_to_others(row: Mapping[str, Any]) -> bool:
    """Return whether a sample is rejected by dataset-wide rules only."""
    reasons = row["reasons"] or []
    return row["outcome"] == "rejected" and all(r.startswith(("keep_best:", "near_duplicate:")) for r in reasons)


def is_by(criteria: Mapping[str, Any], row: Mapping[str, Any], outcome: Mapping[str, Any]) -> bool:
    """Return whether the outcome of a sample follows the criteria of the whole dataset."""
    spans = [rule["min_span"] for rule in criteria["filters"] if rule["kind"] == "depth_range"]
    passes = row["quality"]["depth_span"] >= max(spans, default=0)
    return passes if outcome["outcome"] == "kept" else (not passes or _lost_to_others(outcome))
