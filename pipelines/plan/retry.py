"""Plan quarantined or rejected samples again, in shards that supersede them.

No commit is replaced. The new shards name samples by (uri, etag, row position, index), and the last shard that names a
sample is the one that counts (ledger/counting.py), so each sample still ends exactly once in each version. Ids and
seeds stay. So a quarantined sample gets the result that it would have had without its fault. A rejected sample gets the
same pixels, and the filters and code of the next run decide about it. For new images, use quality.regenerate.

The latest version decides which samples are quarantined or rejected; after a refilter it differs from the commits.
Samples that were rejected only by comparison with others (keep_best, near_duplicate) would be rejected again and are
left out.

`jointdit run` makes the planned samples. A run that is killed resumes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipelines.ledger.counted import Uncovered, made_samples
from pipelines.ledger.entries import Job, Outcome, PlannedShard
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.ledger.versions import is_over_the_set, read_latest
from pipelines.model.fingerprint import digest
from pipelines.plan.shards import append, shards_of_rows
from pipelines.records import Span


@dataclass(frozen=True)
class RetryPlan:
    """What `jointdit retry` added to the plan."""

    output: str
    counts: dict[str, int]  # outcome -> samples that will be made again
    shards: int


def plan_retry(uri: str, outcomes: Collection[Outcome]) -> RetryPlan:
    """Plan the samples that ended in `outcomes` again, unless they are planned again already.

    Raises:
        StoreError: there is no job.
    """
    storage = open_output(uri)
    ledger = Ledger(storage)
    job = ledger.read_job()
    counts: Counter[str] = Counter()

    def propose() -> Sequence[PlannedShard]:
        nonlocal counts
        work = Uncovered.since(ledger, read_latest(ledger.storage), is_partial=True)
        rows, counts = _samples_to_retry(work, outcomes)
        return _shards(job, work, rows)

    shards = append(ledger, propose)
    return RetryPlan(storage.uri, {outcome: counts[outcome] for outcome in sorted(outcomes)}, len(shards))


def _samples_to_retry(
    work: Uncovered, outcomes: Collection[Outcome]
) -> tuple[dict[tuple[Span, int], list[int]], Counter[str]]:
    """Return ((row, round) -> indices of its samples with such an outcome, number of samples by outcome)."""
    rows: dict[tuple[Span, int], list[int]] = {}
    counts: Counter[str] = Counter()
    for outcome in sorted(outcomes):
        for sample in made_samples(work, outcome=outcome):
            if not is_over_the_set(outcome, sample.reasons):
                rows.setdefault((sample.row, sample.round), []).append(sample.index)
                counts[outcome] += 1
    return rows, counts


def _shards(job: Job, work: Uncovered, rows: Mapping[tuple[Span, int], Sequence[int]]) -> list[PlannedShard]:
    """Cut samples into shards. Rows with the same indices of one round share shards."""
    groups: dict[tuple[int, tuple[int, ...]], list[Span]] = {}
    for (row, round_), indices in rows.items():
        groups.setdefault((round_, tuple(sorted(indices))), []).append(row)
    retry = 1 + max((entry.retry for entry in work.changes.retries), default=0)
    per_row, shard_rows = int(job.resolved["input"]["samples_per_row"]), int(job.resolved["output"]["shard_rows"])
    return shards_of_rows(groups, work.changes.next_plan, shard_rows, digest(job.fingerprint), per_row, retry)
