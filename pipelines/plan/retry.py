"""Make samples again that were quarantined or rejected: a plan file whose shards supersede them in the next version.

No commit is replaced. The plan grows by shards that name samples by (uri, etag, row position, index); the last shard
that names a sample is the one that counts (counting.py), so each sample still ends exactly once in each version. Ids
and seeds stay. So a quarantined sample gets what it would have got had its cause not been there; and a rejected one
gets the same pixels, decided by the filters and the code of the next run. New images for rejected prompts are another
thing: quality.regenerate.

Quarantined or rejected is what the latest version says is so; after a refilter that is not what the commits say.
Samples that lost to others of the set (keep_best, near_duplicate) would lose again and are left out.

`jointdit run` makes them, like anything else that is planned: killed in between, it goes on from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.ledger.counting import Counting
from pipelines.ledger.entries import Job, Outcome, PlannedShard
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.ledger.versions import is_over_the_set, read_latest, verdicts
from pipelines.model.fingerprint import digest
from pipelines.plan.shards import append, cut_rows, next_number, row_of, with_id
from pipelines.records import Shard, Span


@dataclass(frozen=True)
class RetryPlan:
    """What `jointdit retry` added to the plan."""

    output: str
    counts: dict[str, int]  # samples that will be made again, by what they were
    shards: int


def plan_retry(uri: str, outcomes: Collection[Outcome]) -> RetryPlan:
    """Plan the samples again that ended in `outcomes` and are not planned again already.

    Raises:
        StoreError: there is no job.
    """
    storage = open_output(uri)
    ledger = Ledger(storage)
    job = ledger.read_job()
    counts: Counter[str] = Counter()

    def propose() -> Sequence[PlannedShard]:
        counts.clear()
        return _shards(job, ledger, outcomes, counts)

    shards = append(ledger, propose)
    return RetryPlan(storage.uri, {outcome: counts[outcome] for outcome in sorted(outcomes)}, len(shards))


def _shards(job: Job, ledger: Ledger, outcomes: Collection[Outcome], counts: Counter[str]) -> list[PlannedShard]:
    """Shards of the rows that have such samples: rows with the same indices of one round go together."""
    planned = ledger.planned()
    commits = ledger.read_commits({entry.shard.id for entry in planned})
    latest = read_latest(ledger.storage)
    published = verdicts(ledger.storage, latest) if latest else {}
    wanted: dict[tuple[Span, int], list[int]] = {}  # (a row, round) -> indices of its samples
    for each in Counting(planned).counted(commits, unfinished=True):
        verdict = (each.sample.outcome, each.sample.reasons)  # of a sample that is in no version yet
        outcome, reasons = published.get((each.sample.id, each.entry.shard.id), verdict)
        if outcome in outcomes and not is_over_the_set(outcome, reasons):
            wanted.setdefault((row_of(each), each.entry.shard.round), []).append(each.sample.index)
            counts[outcome] += 1
    groups: dict[tuple[int, tuple[int, ...]], list[Span]] = {}
    for (row, round_), indices in wanted.items():
        groups.setdefault((round_, tuple(sorted(indices))), []).append(row)
    number, retry = next_number(planned), 1 + max((entry.retry for entry in planned), default=0)
    per_row = int(job.resolved["input"]["samples_per_row"])
    shards: list[PlannedShard] = []
    for (round_, indices_), rows in groups.items():
        for part in cut_rows(rows, int(job.resolved["output"]["shard_rows"])):
            entry = PlannedShard(Shard("", part, round_), len(indices_), number, len(shards), indices_, retry)
            shards.append(with_id(entry, digest(job.fingerprint), per_row))
    return shards
