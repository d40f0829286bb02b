"""Decide the shards that are new or affected: which of their samples count, and where these end.

Where samples are not compared with each other, shards are decided as they are counted (ledger/counted.py). Otherwise
all new and affected shards are held together; what the latest version holds is only looked up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow.compute as pc

from pipelines.dataset.decisions import (
    Criteria,
    Decided,
    Facts,
    Standing,
    agree,
    by_scores,
    read_facts,
    settle,
    standing_among,
    tables_in,
)
from pipelines.ledger.before import Before
from pipelines.ledger.changes import SHARDS_AT_ONCE
from pipelines.ledger.counted import CountedShard, Uncovered, all_counted_shards, counted_shards
from pipelines.ledger.entries import Commit, Outcome, PlannedShard, SampleOutcome
from pipelines.ledger.segments import ShardRows
from pipelines.ledger.versions import Key, Version, verdicts_at
from pipelines.records import RowKey
from pipelines.store.storage import Storage

Found = tuple[int, Outcome, tuple[str, ...]]  # the version that decided, and its verdict


@dataclass
class DecidedShard:
    """A committed shard, and where its samples end."""

    entry: PlannedShard
    commit: Commit
    rows: list[tuple[SampleOutcome, str]]  # samples that it makes, and the ids of their rows
    decided: dict[str, Decided]  # by sample id, those that count
    hashes: dict[str, str] = field(default_factory=dict)  # sample id -> perceptual hash, where the criteria need it
    withheld: int = 0  # samples that would count, and wait for others of their rows (withheld.py)


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
    if not criteria.needs_all:
        for counted in counted_shards(work):
            yield from _cut(_decide(work, with_standing(work, counted), criteria, is_refiltered, task))
        return
    shards = [withhold(shard, waiting) for shard in with_standing(work, all_counted_shards(work))]
    yield from _cut(_decide(work, shards, criteria, is_refiltered, task))


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


def _cut(shards: list[DecidedShard]) -> Iterator[list[DecidedShard]]:
    for start in range(0, len(shards), SHARDS_AT_ONCE):
        yield shards[start : start + SHARDS_AT_ONCE]


def _decide(
    work: Uncovered, shards: list[DecidedShard], criteria: Criteria, is_refiltered: bool, task: str
) -> list[DecidedShard]:
    samples = [sample for shard in shards for sample in shard.decided.values()]
    new = [sample for sample in samples if not sample.since]
    if not new or not (is_refiltered or criteria.needs_all):
        return shards
    made = {sample.shard for sample in new}
    facts = read_facts(work.ledger.storage, tables_of([s for s in shards if s.entry.shard.id in made]), criteria)
    if is_refiltered:
        ends = {sample.key: sample for sample in by_scores(new, criteria.filters, facts)}
        samples = [ends.get(sample.key, sample) for sample in samples]
    if criteria.needs_all:
        touched = {shard.entry.shard.id for shard in shards}
        samples = settle(samples, criteria, facts, standing(work, criteria, samples, touched), task)
    by_shard: dict[str, dict[str, Decided]] = {shard.entry.shard.id: {} for shard in shards}
    for sample in samples:
        by_shard[sample.shard][sample.id] = sample
    return [
        replace(shard, decided=ends, hashes=hashes_in(facts, shard.entry.shard.id, ends))
        for shard in shards
        for ends in [by_shard[shard.entry.shard.id]]
    ]


def hashes_in(facts: Mapping[Key, Facts], shard: str, decided: Iterable[str]) -> dict[str, str]:
    """Return sample id -> perceptual hash of some samples of a shard, as far as facts have it."""
    found = {identifier: facts.get((identifier, shard)) for identifier in decided}
    return {identifier: fact.phash for identifier, fact in found.items() if fact is not None and fact.phash is not None}


def tables_of(shards: Sequence[DecidedShard]) -> list[tuple[str, str]]:
    """Return (shard, path) of the tables of samples with pixels that the commits of some shards name."""
    return [table for shard in shards for table in tables_in(shard.commit)]


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


def standing(work: Uncovered, criteria: Criteria, samples: Sequence[Decided], touched: Collection[str]) -> Standing:
    """Return what the kept samples of the latest version mean for those among `samples` that are decided now.

    Of the shards that are `touched`, only `samples` count: others left the version.
    """
    sources = {sample.source for sample in samples if not sample.since}
    taken: Counter[str] = Counter(s.source for s in samples if s.since and s.outcome == "kept")
    kept: list[tuple[int, str, str]] = []  # (since, id, perceptual hash)
    for shard in work.before.all_shards():
        if shard.shard in touched or not len(shard.samples):
            continue
        table = shard.samples.filter(pc.equal(shard.samples["outcome"], "kept"))
        ids, hashes = table["id"].to_pylist(), table["phash"].to_pylist()
        taken.update(source for i in ids if (source := i.rpartition("/")[0]) in sources)
        if criteria.max_distance is not None:
            if None in hashes:
                hashes = _hashes_of(work.ledger.storage, shard, ids)
            kept += [(s, i, h) for s, i, h in zip(table["since"].to_pylist(), ids, hashes, strict=True) if h]
    if criteria.max_distance is not None:
        own = [sample for sample in samples if sample.since and sample.outcome == "kept"]
        for shard in work.before.shards({sample.shard for sample in own}).values():
            ids = [sample.id for sample in own if sample.shard == shard.shard]
            since = {sample.id: sample.since for sample in own if sample.shard == shard.shard}
            kept += [
                (since[i], i, h) for i, h in zip(ids, _hashes_of(work.ledger.storage, shard, ids), strict=True) if h
            ]
    kept.sort(key=lambda each: each[0])
    return Standing(taken, [(phash, identifier) for _, identifier, phash in kept])


def _hashes_of(storage: Storage, shard: ShardRows, ids: Sequence[str]) -> list[str | None]:
    """Read the perceptual hashes of samples from the tables of their shard."""
    facts: dict[Key, Facts] = read_facts(storage, [(shard.shard, f.path) for f in shard.files if f.outcome == "kept"])
    return [facts[identifier, shard.shard].phash for identifier in ids]


def decide_again(
    storage: Storage, version: Version, counted: Iterable[tuple[str, SampleOutcome]], commits: Mapping[str, Commit]
) -> list[Decided]:
    """Decide the samples of a published version again, by its criteria and the decisions that stand in it.

    A decision that stands is accepted only where the sample's commit, or its scores, allow it.

    Args:
        counted: (shard, sample) of all samples that count, in the order of the plan.
    """
    criteria = Criteria.from_json(version.criteria)
    decided = [
        Decided(sample.id, shard, sample.outcome, sample.reasons, sample.outcome, sample.reasons)
        for shard, sample in counted
    ]
    facts: dict[Key, Facts] = {}
    if version.refilter or criteria.needs_all:
        shards = {sample.shard for sample in decided}
        facts = read_facts(
            storage, (table for shard in sorted(shards) for table in tables_in(commits[shard])), criteria
        )
    if version.refilter:
        decided = by_scores(decided, criteria.filters, facts)
    stand = standing_decisions(storage, version)
    for place, sample in enumerate(decided):
        since, outcome, reasons = stand.get(sample.key, (0, sample.outcome, sample.reasons))
        if since and agree(sample, (outcome, reasons)):
            decided[place] = replace(sample, since=since, outcome=outcome, reasons=reasons)
    return settle(decided, criteria, facts, standing_among(decided, facts), version.spec.task)


def standing_decisions(storage: Storage, version: Version) -> dict[Key, Found]:
    """Return the decisions of earlier versions that stand in a version."""
    if version.has_segments:
        return {key: found for key, found in decisions_of(storage, version).items() if found[0] < version.number}
    held = verdicts_at(storage, version.held_outcomes) if version.held_outcomes else {}
    return {key: (version.held, *verdict) for key, verdict in held.items()}


def decisions_of(storage: Storage, version: Version) -> dict[Key, Found]:
    """Return where the samples of a version end. Raises FileNotFoundError once it is pruned."""
    shards = Before(storage, version).all_shards()
    return {s.key: (s.since, s.outcome, s.reasons) for shard in shards for s in decisions_in(shard)}


def decisions_in(shard: ShardRows) -> list[Decided]:
    """Return the samples of a shard of a version that count."""
    table = shard.samples.filter(pc.greater(shard.samples["since"], 0))
    columns = (table[name].to_pylist() for name in ("id", "since", "outcome", "reasons", "made", "made_reasons"))
    return [
        Decided(identifier, shard.shard, outcome, tuple(reasons or ()), made, tuple(made_reasons or ()), since)
        for identifier, since, outcome, reasons, made, made_reasons in zip(*columns, strict=True)
    ]
