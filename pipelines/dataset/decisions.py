"""Decide where each sample of a version ends: by commit, scores and dataset-wide rules.

    filters           at the sample's commit; by stored scores once `jointdit refilter` set them for the whole dataset
    keep_best         the k best samples of each row among those that passed the filters
    near_duplicate    rejects remaining samples that look like an earlier one

The order is (version that decided first, plan file, position), whatever the order in which shards were made. Decisions
of earlier versions stand, and later samples are compared with them. So a later run never changes an earlier winner: a
sample that joins a full row, or looks like a kept one, is rejected however good it is. A retried sample (plan/retry.py)
is a new one. Nothing is planned here: new seeds replace only what filters rejected at a commit (plan/regeneration.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.near_duplicates import near_duplicates
from pipelines.ledger.entries import Commit, Outcome
from pipelines.ledger.versions import Key, Verdict, is_over_the_set
from pipelines.quality import Filter, KeepBest, NearDuplicate, decide, load_filters
from pipelines.spec.job import QualitySpec
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.joins import joins
from pipelines.store.storage import Storage

SAME_IMAGE = ("depth", "prepare", "encode")  # tasks where the samples of a row share its image


@dataclass(frozen=True)
class Criteria:
    """By what samples are kept: filters and keep_best."""

    filters: tuple[Filter, ...] = ()
    keep_best: KeepBest | None = None

    @classmethod
    def of(cls, quality: QualitySpec) -> Self:
        """Return the criteria of a spec."""
        return cls(load_filters(quality.filters), quality.keep_best)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the criteria that `to_json` wrote."""
        return cls.of(QualitySpec.model_validate(fields))

    def to_json(self) -> dict[str, Any]:
        """Return all thresholds, including defaults, because another version of the code may have other defaults."""
        filters = [{"kind": filter_.kind, **filter_.model_dump(mode="json")} for filter_ in self.filters]
        return {"filters": filters, "keep_best": self.keep_best and self.keep_best.model_dump(mode="json")}

    @property
    def max_distance(self) -> int | None:
        """The largest distance in bits between the hashes of near-duplicates; None where near-duplicates are kept."""
        return max((f.max_distance for f in self.filters if isinstance(f, NearDuplicate)), default=None)

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the scores that the criteria use, each once."""
        names = [name for filter_ in self.filters for name in filter_.scores]
        return tuple(dict.fromkeys([*names, self.keep_best.by] if self.keep_best else names))

    @property
    def needs_all(self) -> bool:
        """Whether a decision depends on other samples."""
        return self.keep_best is not None or self.max_distance is not None


@dataclass(frozen=True, slots=True)
class Decided:
    """A sample that counts, and where it ends."""

    id: str
    shard: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    made: Outcome = "kept"  # its outcome in the commit
    made_reasons: tuple[str, ...] = ()
    since: int = 0  # the version whose decision stands; 0: it is decided now

    @property
    def key(self) -> Key:
        """(id, shard), which is unique among all samples that were ever made."""
        return self.id, self.shard

    @property
    def source(self) -> str:
        """The id of its row."""
        return row_of(self.id)


def row_of(sample: str) -> str:
    """Return the id of the row of a sample."""
    return sample.rpartition("/")[0]


@dataclass(frozen=True)
class Facts:
    """What is stored of a sample with pixels, as far as decisions use it."""

    scores: Mapping[str, float | None]
    phash: str | None
    prompt: str | None = None


@dataclass(frozen=True)
class Standing:
    """What decisions of earlier versions mean for samples that are decided now."""

    taken: Mapping[str, int]  # row -> its kept samples
    hashes: Sequence[tuple[str, str]] = ()  # (perceptual hash, id) of kept samples, in the order of their decisions


def by_scores(decided: Iterable[Decided], filters: Sequence[Filter], facts: Mapping[Key, Facts]) -> list[Decided]:
    """Decide samples by filters on their stored scores. Quarantined samples stay quarantined."""
    result = []
    for sample in decided:
        if sample.made == "quarantined":
            sample = replace(sample, outcome="quarantined", reasons=sample.made_reasons)
        else:
            stored = facts[sample.key]
            reasons = tuple(decide(filters, stored.scores, stored.prompt))
            sample = replace(sample, outcome="rejected" if reasons else "kept", reasons=reasons)
        result.append(sample)
    return result


def settle(
    decided: Sequence[Decided], criteria: Criteria, facts: Mapping[Key, Facts], standing: Standing, task: str
) -> list[Decided]:
    """Apply dataset-wide rules to samples in the order of the plan. Those with `since` stand and are not compared."""
    settled = list(decided)
    if criteria.keep_best is not None:
        settled = _keep_best(settled, criteria.keep_best, facts, standing.taken)
    if criteria.max_distance is not None:
        settled = _drop_duplicates(settled, criteria.max_distance, facts, standing.hashes, task in SAME_IMAGE)
    return settled


def standing_among(decided: Iterable[Decided], facts: Mapping[Key, Facts]) -> Standing:
    """Return what the samples with `since` mean for the others."""
    kept = sorted((s for s in decided if s.since and s.outcome == "kept"), key=lambda sample: sample.since)
    hashes = [(phash, s.id) for s in kept if s.key in facts and (phash := facts[s.key].phash) is not None]
    return Standing(Counter(s.source for s in kept), hashes)


def agree(made_now: Decided, verdict: Verdict) -> bool:
    """Return whether a version's verdict can follow from what the filters say about a sample."""
    outcome, reasons = verdict
    return outcome == made_now.outcome or (made_now.outcome == "kept" and is_over_the_set(outcome, reasons))


def read_facts(
    storage: Storage, tables: Iterable[tuple[str, str]], criteria: Criteria | None = None
) -> dict[Key, Facts]:
    """Read scores, hashes and captions of samples with pixels. No image is read.

    Args:
        tables: (shard, path of a table of its kept or rejected samples).
        criteria: only the scores that they use are kept: all scores of a million samples would take gigabytes.
    """
    tables = list(tables)
    facts: dict[Key, Facts] = {}
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for (shard, _), rows in zip(tables, pool.map(lambda table: _read(storage, table[1]), tables), strict=True):
            for row in rows:
                scores = row.get("quality") or {}
                if criteria is not None:
                    scores = {name: scores.get(name) for name in criteria.scores}
                facts[row["id"], shard] = Facts(scores, row.get("phash"), row.get("prompt"))
    return facts


def tables_in(commit: Commit) -> list[tuple[str, str]]:
    """Return (shard, path) of the tables of samples with pixels that a commit names."""
    return [
        (commit.shard, stored.path)
        for stored in commit.objects
        if stored.kind == "table" and stored.outcome != "quarantined"
    ]


def missing_scores(decided: Iterable[Decided], criteria: Criteria, facts: Mapping[Key, Facts]) -> dict[str, list[str]]:
    """Map each score (or "phash") that the criteria use and some samples lack to the ids of these samples.

    A score that only some samples of a shard lack could not be computed for them, as for a constant map: no filter
    keeps them (`decide`). Where all samples of a shard lack it, it was never computed, unless their reasons say so.
    """
    shards: dict[str, list[Decided]] = {}
    for sample in decided:
        if sample.made != "quarantined":
            shards.setdefault(sample.shard, []).append(sample)
    missing: dict[str, list[str]] = {}
    for samples in shards.values():
        for name in criteria.scores:
            without = [sample for sample in samples if facts[sample.key].scores.get(name) is None]
            tried = any(f": {name} was not computed" in reason for s in without for reason in s.made_reasons)
            if len(without) == len(samples) and not tried:
                missing.setdefault(name, []).extend(sample.id for sample in without)
        if criteria.max_distance is not None:
            unhashed = [sample.id for sample in samples if facts[sample.key].phash is None]
            missing.setdefault("phash", []).extend(unhashed)
    return {name: identifiers for name, identifiers in missing.items() if identifiers}


def _read(storage: Storage, path: str) -> list[dict[str, Any]]:
    with storage.open(path) as file, pq.ParquetFile(file) as table:
        columns = [name for name in ("id", "quality", "phash", "prompt") if name in table.schema_arrow.names]
        rows: list[dict[str, Any]] = table.read(columns=columns).to_pylist()
        return rows


def _keep_best(
    decided: Sequence[Decided], best: KeepBest, facts: Mapping[Key, Facts], taken: Mapping[str, int]
) -> list[Decided]:
    rivals: dict[str, list[int]] = {}  # row -> places of its samples that are not decided yet
    for place, sample in enumerate(decided):
        if sample.outcome == "kept" and not sample.since:
            rivals.setdefault(sample.source, []).append(place)
    settled = list(decided)
    for row, places in rivals.items():
        ranked = sorted(places, key=lambda place: (best.rank(facts[decided[place].key].scores.get(best.by)), place))
        for place in ranked[max(0, best.k - taken.get(row, 0)) :]:
            score = facts[decided[place].key].scores.get(best.by)
            value = "is missing" if score is None else f"is {score:.4g}"
            reason = f"keep_best: {best.by} {value}, not among the {best.k} {best.order} of its row"
            settled[place] = replace(decided[place], outcome="rejected", reasons=(reason,))
    return settled


def _drop_duplicates(
    decided: Sequence[Decided],
    max_distance: int,
    facts: Mapping[Key, Facts],
    standing: Sequence[tuple[str, str]],
    same_image: bool,
) -> list[Decided]:
    first = len(standing)  # the order of the samples that are decided now begins after those that stand
    new = [
        (first + place, phash, sample.source)
        for place, sample in enumerate(decided)
        if sample.outcome == "kept" and not sample.since and (phash := facts[sample.key].phash) is not None
    ]
    if not new:
        return list(decided)
    held = [(place, phash, row_of(identifier)) for place, (phash, identifier) in enumerate(standing)]
    places, hashes, rows = zip(*held, *new, strict=True)
    candidates = pa.table(
        {
            "order": pa.array(places, pa.int64()),
            "hash": pa.array([int(phash, 16) for phash in hashes], pa.uint64()),
            "row": pa.array(rows, pa.string()),
            "is_held": pa.array([place < first for place in places]),
        }
    )
    settled = list(decided)
    with joins() as connection:
        connection.register("candidates", candidates)
        found = near_duplicates(connection, "candidates", max_distance, same_row_is_no_duplicate=same_image).fetchall()
    for place, distance, nearest in found:
        identifier = standing[nearest][1] if nearest < first else decided[nearest - first].id
        reason = f"near_duplicate: {distance} of 64 bits from {identifier}"
        settled[place - first] = replace(decided[place - first], outcome="rejected", reasons=(reason,))
    return settled
