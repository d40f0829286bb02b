"""Decide the shards that are new or affected: which of their samples count, and where these end.

Where no two files can share a row, no sample is retried and none is compared with others, shards are decided some at a
time, in bounded memory. Otherwise all new and affected shards are held together, and what is covered already is looked
up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.before import Before
from pipelines.dataset.changes import SHARDS_AT_ONCE, Changes, shards_with_rows
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
from pipelines.ledger.counting import CountedSample, Counting, JudgedSample
from pipelines.ledger.entries import Commit, Outcome, PlannedShard, SampleOutcome, Unfinished
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.segments import ShardRows
from pipelines.ledger.versions import Key, Version, verdicts_at
from pipelines.store.storage import Storage

ReadCommits = Callable[[Iterable[str]], dict[str, Commit]]
Found = tuple[int, Outcome, tuple[str, ...]]  # the version that decided, and its verdict


@dataclass(frozen=True)
class Undecided:
    """What a publisher knows before it decides."""

    storage: Storage
    ledger: Ledger
    before: Before
    changes: Changes
    number: int = 0  # of the version that it would publish
    read: ReadCommits | None = None  # default: from the ledger
    is_partial: bool = False  # whether shards without a commit are left out

    def read_commits(self, shards: Iterable[str]) -> dict[str, Commit]:
        """Return the commits of those shards that have one."""
        return (self.read or self.ledger.read_commits)(shards)

    def counting(self, entries: Sequence[PlannedShard]) -> Counting:
        """Return what decides which samples of these shards count."""
        return Counting(entries, self.changes.versions, self.changes.retries)


@dataclass
class DecidedShard:
    """A committed shard, and where its samples end."""

    entry: PlannedShard
    commit: Commit
    rows: list[tuple[SampleOutcome, str]]  # samples that it makes, and the ids of their rows
    decided: dict[str, Decided]  # by sample id, those that count
    hashes: dict[str, str] = field(default_factory=dict)  # sample id -> perceptual hash, where the criteria need it


def decide_shards(work: Undecided, criteria: Criteria, is_refiltered: bool, task: str) -> Iterator[list[DecidedShard]]:
    """Yield the shards that the next version must look at, some at a time, in the order of the plan.

    Args:
        is_refiltered: whether the criteria hold for all samples, whatever filters their commits were made with.

    Raises:
        Unfinished: a shard that counts has no commit.
    """
    if not (criteria.needs_all or work.changes.may_share_rows or work.changes.retries):
        for shards in counted_shards(work):
            yield _decide(work, shards, criteria, is_refiltered, task)
        return
    shards = _decide(work, shared_shards(work), criteria, is_refiltered, task)
    for start in range(0, len(shards), SHARDS_AT_ONCE):
        yield shards[start : start + SHARDS_AT_ONCE]


def _decide(
    work: Undecided, shards: list[DecidedShard], criteria: Criteria, is_refiltered: bool, task: str
) -> list[DecidedShard]:
    samples = [sample for shard in shards for sample in shard.decided.values()]
    new = [sample for sample in samples if not sample.since]
    if not new or not (is_refiltered or criteria.needs_all):
        return shards
    made = {sample.shard for sample in new}
    facts = read_facts(work.storage, tables_of([s for s in shards if s.entry.shard.id in made]), criteria)
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


def counted_shards(work: Undecided) -> Iterator[list[DecidedShard]]:
    """Yield new and affected shards whose rows no other file can have, with the decisions that stand."""
    for entries in work.changes.chunks(work.ledger):
        counting = work.counting(entries)
        commits = read_commits(work, counting, entries)
        yield _with_standing(work, entries, commits, list(counting.made(commits)))


def shared_shards(work: Undecided) -> list[DecidedShard]:
    """Return new and affected shards, and those covered ones that have a row in common with them."""
    entries = [entry for chunk in work.changes.chunks(work.ledger) for entry in chunk]
    counting = work.counting(entries)
    commits = read_commits(work, counting, entries)
    if not work.changes.may_share_rows:
        return _with_standing(work, entries, commits, list(counting.made(commits)))
    judged = list(counting.judge(commits))
    rows = {each.row for each in judged}
    rows |= {sample.id.rpartition("/")[0] for commit in commits.values() for sample in commit.samples}
    known = {entry.shard.id for entry in entries}
    bases = work.before.shards(shards_with_rows(work.ledger, unread_rows(judged)) - known)
    for shard in bases.values():
        rows.update(shard.samples["row"].to_pylist())
    holders = (_holders(work, rows) | set(bases)) - known
    old = work.before.shards(holders)
    entries = sorted([*entries, *entries_of(work.ledger, old)], key=lambda entry: (entry.plan, entry.position))
    commits |= work.read_commits(holders)
    judged = list(work.counting(entries).judge(commits))
    counted = {  # of rows that are not in question, the latest version knows whether they count
        (shard, identifier)
        for shard, rows_of in old.items()
        for identifier in rows_of.samples.filter(pc.greater(rows_of.samples["since"], 0))["id"].to_pylist()
    }
    row_of = {
        (shard, i): row
        for shard, rows_of in old.items()
        for i, row in zip(rows_of.samples["id"].to_pylist(), rows_of.samples["row"].to_pylist(), strict=True)
    }
    judged = [
        replace(each, row=row_of[key], counts=key in counted)
        if (key := (each.entry.shard.id, each.sample.id)) in row_of and row_of[key] not in rows
        else each
        for each in judged
    ]
    return _with_standing(work, entries, commits, judged)


def unread_rows(judged: Iterable[JudgedSample]) -> dict[tuple[str, str], list[int]]:
    """Return (uri, etag) -> positions of rows that were planned again and whose id could not be read then."""
    unread: dict[tuple[str, str], set[int]] = {}
    for each in judged:
        span = each.entry.shard.spans[each.sample.span]
        if not each.entry.is_first and each.row == f"{span.relative_path}:{each.sample.position}":
            unread.setdefault((span.uri, span.etag), set()).add(each.sample.position)
    return {file: sorted(positions) for file, positions in unread.items()}


def _holders(work: Undecided, rows: set[str]) -> set[str]:
    latest = work.before.latest
    if latest is None or work.before.is_old or not rows:
        return set()
    return latest.content.holders(pa.array(sorted(rows), pa.string()))


def entries_of(ledger: Ledger, shards: Mapping[str, ShardRows]) -> list[PlannedShard]:
    """Return the planned shards that some shards of segments are of."""
    places: dict[int, list[int]] = {}
    for shard in shards.values():
        places.setdefault(shard.plan, []).append(shard.place)
    return [entry for number, chosen in places.items() for entry in ledger.entries(number, sorted(chosen))]


def read_commits(work: Undecided, counting: Counting, entries: Sequence[PlannedShard]) -> dict[str, Commit]:
    """Read the commits of some shards. Raises Unfinished where a shard that counts has none."""
    commits = work.read_commits(entry.shard.id for entry in entries)
    for entry in entries:
        if not work.is_partial and entry.shard.id not in commits and not counting.is_superseded(entry):
            raise Unfinished(f"shard {entry.shard.id} is planned and not committed: run the job to its end first.")
    return commits


def _with_standing(
    work: Undecided, entries: Sequence[PlannedShard], commits: Mapping[str, Commit], judged: Sequence[JudgedSample]
) -> list[DecidedShard]:
    """Return shards with the decisions of their commits, or of the latest version where these stand."""
    shards = {
        entry.shard.id: DecidedShard(entry, commits[entry.shard.id], [], {})
        for entry in entries
        if entry.shard.id in commits
    }
    before = work.before.shards(list(shards)).values()
    stand = {s.key: (s.since, s.outcome, s.reasons) for shard in before for s in decisions_in(shard)}
    for each in judged:
        shard_id, sample = each.entry.shard.id, each.sample
        if each.entry is not shards[shard_id].entry:
            continue  # the shard was planned again later
        shards[shard_id].rows.append((sample, each.row))
        if each.counts:
            since, outcome, reasons = stand.get((sample.id, shard_id), (0, sample.outcome, sample.reasons))
            decided = Decided(sample.id, shard_id, outcome, reasons, sample.outcome, sample.reasons, since)
            shards[shard_id].decided[sample.id] = decided
    return list(shards.values())


def standing(work: Undecided, criteria: Criteria, samples: Sequence[Decided], touched: Collection[str]) -> Standing:
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
                hashes = _hashes_of(work.storage, shard, ids)
            kept += [(s, i, h) for s, i, h in zip(table["since"].to_pylist(), ids, hashes, strict=True) if h]
    if criteria.max_distance is not None:
        own = [sample for sample in samples if sample.since and sample.outcome == "kept"]
        for shard in work.before.shards({sample.shard for sample in own}).values():
            ids = [sample.id for sample in own if sample.shard == shard.shard]
            since = {sample.id: sample.since for sample in own if sample.shard == shard.shard}
            kept += [(since[i], i, h) for i, h in zip(ids, _hashes_of(work.storage, shard, ids), strict=True) if h]
    kept.sort(key=lambda each: each[0])
    return Standing(taken, [(phash, identifier) for _, identifier, phash in kept])


def _hashes_of(storage: Storage, shard: ShardRows, ids: Sequence[str]) -> list[str | None]:
    """Read the perceptual hashes of samples from the tables of their shard."""
    facts: dict[Key, Facts] = read_facts(storage, [(shard.shard, f.path) for f in shard.files if f.outcome == "kept"])
    return [facts[identifier, shard.shard].phash for identifier in ids]


def decide_again(
    storage: Storage, version: Version, counted: Sequence[CountedSample], commits: Mapping[str, Commit]
) -> list[Decided]:
    """Decide the samples of a published version again, by its criteria and the decisions that stand in it.

    A decision that stands is accepted only where the sample's commit, or its scores, allow it.
    """
    criteria = Criteria.from_json(version.criteria)
    decided = [
        Decided(s.id, each.entry.shard.id, s.outcome, s.reasons, s.outcome, s.reasons)
        for each in counted
        for s in [each.sample]
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
