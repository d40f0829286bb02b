"""Which samples count, judged from all commits in memory: the reference for pipelines/ledger/together.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipelines.ledger.counting import Counting, JudgedSample, row_id
from pipelines.ledger.entries import Commit


def judge(counting: Counting, commits: Mapping[str, Commit]) -> Iterator[JudgedSample]:
    """Yield the committed samples of current files, and whether each counts."""
    row_versions = counting.row_versions(commits)
    committed = [entry for entry in counting.planned if entry.shard.id in commits]
    samples = [(entry, entry.shard.spans[s.span], s) for entry in committed for s in commits[entry.shard.id].samples]
    samples = [each for each in samples if counting.has_row(each[0], each[1], each[2].position)]
    names: dict[tuple[str, str, int], str] = {}
    for _, span, sample in samples:
        if row_id(sample) != f"{span.relative_path}:{sample.position}":
            names.setdefault((span.uri, span.etag, sample.position), row_id(sample))
    for entry, span, sample in samples:
        row = names.get((span.uri, span.etag, sample.position)) or row_id(sample)
        counts = row_versions.get(row) == (span.uri, span.etag) and counting.makes(entry, sample)
        yield JudgedSample(entry, sample, row, counts)
