"""Where each sample of a version ends: as its commit says, or by stored scores, and then by what needs the whole set.

    filters           at the sample's commit; by stored scores since `jointdit refilter` set them for the whole dataset
    keep_best         the k best of each row's samples that passed the filters
    near_duplicate    of what is left, what looks like an earlier sample

The order is (plan file, position), whatever the order in which shards were made. `held` are decisions of an earlier
version: they stand, and what comes later is measured against them. So a later run never changes an earlier winner: a
sample that joins a full row, or looks like a kept one, is rejected, however good. A sample that was made again
(retry.py) is a new one. None of this plans anything: new seeds come for what filters rejected at a commit (plan.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import pyarrow.parquet as pq

from pipelines.ledger.counting import CountedSample
from pipelines.ledger.entries import Commit, Outcome
from pipelines.ledger.versions import Key, Verdict, is_over_the_set
from pipelines.quality import Filter, KeepBest, NearDuplicate, decide, load_filters
from pipelines.quality.near_duplicate import HashIndex
from pipelines.spec.job import QualitySpec
from pipelines.store.storage import Storage

READERS = 16
SAME_IMAGE = ("depth", "prepare", "encode")  # tasks where a row's samples share the row's image


@dataclass(frozen=True)
class Criteria:
    """What samples are kept by."""

    filters: tuple[Filter, ...] = ()
    keep_best: KeepBest | None = None

    @classmethod
    def of(cls, quality: QualitySpec) -> Self:
        """Those of a spec."""
        return cls(load_filters(quality.filters), quality.keep_best)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Those that `to_json` gave."""
        return cls.of(QualitySpec.model_validate(fields))

    def to_json(self) -> dict[str, Any]:
        """Every threshold, also those left to defaults: another version's code may have others."""
        filters = [{"kind": each.kind, **each.model_dump(mode="json")} for each in self.filters]
        return {"filters": filters, "keep_best": self.keep_best and self.keep_best.model_dump(mode="json")}

    @property
    def max_distance(self) -> int | None:
        """Between the hashes of near-duplicates, in bits; None where they are kept."""
        return max((f.max_distance for f in self.filters if isinstance(f, NearDuplicate)), default=None)

    @property
    def scores(self) -> tuple[str, ...]:
        """What they decide by, each once."""
        names = [name for each in self.filters for name in each.scores]
        return tuple(dict.fromkeys([*names, self.keep_best.by] if self.keep_best else names))

    @property
    def needs_all(self) -> bool:
        """Whether a decision needs more than the sample."""
        return self.keep_best is not None or self.max_distance is not None


@dataclass(frozen=True)
class Decided:
    """A sample that counts, and where it ends."""

    counted: CountedSample
    outcome: Outcome
    reasons: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What tells it from every other sample that was ever made."""
        return self.counted.sample.id, self.counted.entry.shard.id


@dataclass(frozen=True)
class Facts:
    """What is stored of a sample with pixels, as far as decisions need it."""

    scores: Mapping[str, float | None]
    phash: str | None
    prompt: str | None = None


def by_commits(counted: Iterable[CountedSample]) -> list[Decided]:
    """Where the filters of the run that made each sample put it."""
    return [Decided(each, each.sample.outcome, each.sample.reasons) for each in counted]


def by_scores(counted: Iterable[CountedSample], filters: Sequence[Filter], facts: Mapping[Key, Facts]) -> list[Decided]:
    """Where filters put each sample by its stored scores; what was quarantined stays so."""
    decided = []
    for each in by_commits(counted):
        if each.outcome != "quarantined":
            known = facts[each.key]
            reasons = tuple(decide(filters, known.scores, known.prompt))
            each = replace(each, outcome="rejected" if reasons else "kept", reasons=reasons)
        decided.append(each)
    return decided


def settle(
    decided: Sequence[Decided], criteria: Criteria, facts: Mapping[Key, Facts], held: Mapping[Key, Verdict], task: str
) -> list[Decided]:
    """Decide what needs the whole set. `decided` is in the order of the plan; `held` decisions stand."""
    settled = [replace(d, outcome=held[d.key][0], reasons=held[d.key][1]) if d.key in held else d for d in decided]
    if criteria.keep_best is not None:
        settled = _keep_best(settled, criteria.keep_best, facts, held)
    if criteria.max_distance is not None:
        settled = _drop_duplicates(settled, criteria.max_distance, facts, held, task in SAME_IMAGE)
    return settled


def agree(decided: Decided, verdict: Verdict) -> bool:
    """Whether a version's verdict can follow from what the filters say of a sample."""
    outcome, reasons = verdict
    return outcome == decided.outcome or (decided.outcome == "kept" and is_over_the_set(outcome, reasons))


def read_facts(
    storage: Storage, commits: Mapping[str, Commit], shards: Iterable[str], criteria: Criteria | None = None
) -> dict[Key, Facts]:
    """Scores, hashes and captions of the samples with pixels in some shards' tables; no image is read.

    Of the scores, those that `criteria` decide by: a million samples with all there are would fill gigabytes.
    """
    tables = [
        (shard, stored.path)
        for shard in shards
        for stored in commits[shard].objects
        if stored.kind == "table" and stored.outcome != "quarantined"
    ]
    facts: dict[Key, Facts] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for (shard, _), rows in zip(tables, pool.map(lambda table: _read(storage, table[1]), tables), strict=True):
            for row in rows:
                scores = row.get("quality") or {}
                if criteria is not None:
                    scores = {name: scores.get(name) for name in criteria.scores}
                facts[row["id"], shard] = Facts(scores, row.get("phash"), row.get("prompt"))
    return facts


def lacking(decided: Iterable[Decided], criteria: Criteria, facts: Mapping[Key, Facts]) -> dict[str, list[str]]:
    """Score, or phash -> ids of the samples for which it was not computed and the criteria need it.

    A score that a few samples of a shard lack could not be computed for them, such as one of a constant map: no filter
    keeps them (`decide`). Where all of a shard lack it, nobody tried, unless their reasons say so.
    """
    shards: dict[str, list[Decided]] = {}
    for each in decided:
        if each.outcome != "quarantined":
            shards.setdefault(each.key[1], []).append(each)
    missing: dict[str, list[str]] = {}
    for samples in shards.values():
        for name in criteria.scores:
            untried = [each for each in samples if facts[each.key].scores.get(name) is None]
            tried = any(f": {name} was not computed" in reason for d in untried for reason in d.counted.sample.reasons)
            if len(untried) == len(samples) and not tried:
                missing.setdefault(name, []).extend(each.counted.sample.id for each in untried)
        if criteria.max_distance is not None:
            unhashed = [each.counted.sample.id for each in samples if facts[each.key].phash is None]
            missing.setdefault("phash", []).extend(unhashed)
    return {name: identifiers for name, identifiers in missing.items() if identifiers}


def _read(storage: Storage, path: str) -> list[dict[str, Any]]:
    with storage.open(path) as file, pq.ParquetFile(file) as table:
        columns = [name for name in ("id", "quality", "phash", "prompt") if name in table.schema_arrow.names]
        rows: list[dict[str, Any]] = table.read(columns=columns).to_pylist()
        return rows


def _keep_best(
    decided: Sequence[Decided], best: KeepBest, facts: Mapping[Key, Facts], held: Mapping[Key, Verdict]
) -> list[Decided]:
    taken: Counter[str] = Counter()
    rivals: dict[str, list[int]] = {}  # row -> places of its samples that are not decided yet
    for place, each in enumerate(decided):
        if each.outcome == "kept":
            if each.key in held:
                taken[each.counted.source] += 1
            else:
                rivals.setdefault(each.counted.source, []).append(place)
    settled = list(decided)
    for row, places in rivals.items():
        ranked = sorted(places, key=lambda place: (best.rank(facts[decided[place].key].scores.get(best.by)), place))
        for place in ranked[max(0, best.k - taken[row]) :]:
            score = facts[decided[place].key].scores.get(best.by)
            found = "is missing" if score is None else f"is {score:.4g}"
            reason = f"keep_best: {best.by} {found}, not among the {best.k} {best.order} of its row"
            settled[place] = replace(decided[place], outcome="rejected", reasons=(reason,))
    return settled


def _drop_duplicates(
    decided: Sequence[Decided],
    max_distance: int,
    facts: Mapping[Key, Facts],
    held: Mapping[Key, Verdict],
    same_image: bool,
) -> list[Decided]:
    index = HashIndex(max_distance)

    def hash_of(each: Decided) -> int | None:
        phash = facts[each.key].phash
        return None if phash is None else int(phash, 16)

    for each in decided:
        if each.outcome == "kept" and each.key in held and (value := hash_of(each)) is not None:
            index.add(value, each.counted.sample.id, each.counted.source)
    settled = []
    for each in decided:
        if each.outcome == "kept" and each.key not in held and (value := hash_of(each)) is not None:
            found = index.nearest(value, not_of=each.counted.source if same_image else None)
            if found is None:
                index.add(value, each.counted.sample.id, each.counted.source)
            else:
                reason = f"near_duplicate: {found[0]} of 64 bits from {found[1]}"
                each = replace(each, outcome="rejected", reasons=(reason,))
        settled.append(each)
    return settled
