"""Plan new samples, with seeds of their own, in place of samples that a filter rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow.compute as pc

from pipelines.ledger.counted import Uncovered, made_samples
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest
from pipelines.model.fingerprint import Fingerprint, digest
from pipelines.plan.shards import append, shards_of_rows
from pipelines.quality import rejects_input
from pipelines.records import Span
from pipelines.spec.job import JobSpec


def extend_with_regeneration(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger) -> int:
    """Plan new samples for those that committed shards rejected. Returns how many.

    A rejected sample of round r < quality.regenerate gets one new sample in round r + 1, with its own index and
    therefore its own seed. There is none where a filter rejected the input itself, which no seed changes. The plan
    follows from commits alone, so it can be resumed.
    """
    if spec.quality.regenerate == 0:
        return 0
    return sum(entry.samples for entry in append(ledger, lambda: plan_regeneration(spec, fingerprint, ledger)))


def plan_regeneration(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger) -> list[PlannedShard]:
    """Return the shards of the next plan file for all samples that are rejected by now. Writes nothing.

    Of what the latest version covers, only columns of rejected samples are read, and no commit.
    """
    work = Uncovered.since(ledger, read_latest(ledger.storage), is_partial=True)
    groups = dict(sorted(rows_to_regenerate(spec, work).items(), key=lambda item: item[0]))
    shard_rows, per_row = spec.output.shard_rows, spec.input.samples_per_row
    return shards_of_rows(groups, work.changes.next_plan, shard_rows, digest(fingerprint), per_row)


def rows_to_regenerate(spec: JobSpec, work: Uncovered) -> dict[tuple[int, tuple[int, ...]], list[Span]]:
    """Return (round, indices) -> rows with rejected samples that no new sample is planned for."""
    per_row = spec.input.samples_per_row
    have: Counter[tuple[str, str, int, int]] = Counter()  # (uri, etag, row position, round) -> samples planned for it
    for number in work.changes.plans:
        table = work.ledger.plan_tables()[number]
        is_round = pc.and_(pc.greater(table["round"], 0), pc.equal(pc.fill_null(table["retry"], 0), 0))
        for entry in work.ledger.entries(number, pc.indices_nonzero(is_round).to_pylist()):
            for span in entry.shard.spans:
                for position in range(span.start, span.stop):
                    have[span.uri, span.etag, position, entry.shard.round] += entry.samples_per_row
    lost: Counter[tuple[Span, int]] = Counter()  # (row, round) -> samples that were rejected in the round before
    for sample in made_samples(work, made="rejected"):
        if sample.round < spec.quality.regenerate and is_worth_a_seed(sample.made_reasons, spec.task):
            lost[sample.row, sample.round + 1] += 1
    rows: dict[tuple[int, tuple[int, ...]], list[Span]] = {}  # (round, indices) -> rows
    for (row, round_), count in lost.items():
        first = round_ * per_row
        indices = range(first + have[row.uri, row.etag, row.start, round_], first + count)
        if indices:
            rows.setdefault((round_, tuple(indices)), []).append(row)
    return rows


def is_worth_a_seed(reasons: Sequence[str], task: str) -> bool:
    """Return whether a sample was rejected, for these reasons, for something that another seed may change."""
    kinds = {reason.split(":")[0] for reason in reasons}
    return not any(rejects_input(kind, task) for kind in kinds)
