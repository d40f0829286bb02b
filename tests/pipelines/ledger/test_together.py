"""Samples that are judged together, compared with a judgement of all commits in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ledger.carried import CarriedRows, Origin, of_runs
from pipelines.ledger.counted import Uncovered, counted_shards
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome
from pipelines.ledger.ledger import Ledger
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.store.storage import Storage
from tests.judged import judge

FILES = ("a.txt", "b.txt", "c.txt")
PLANS = st.lists(
    st.lists(st.tuples(st.sampled_from(FILES), st.sampled_from("12"), st.integers(1, 3)), min_size=1, max_size=3),
    min_size=1,
    max_size=3,
)  # of each plan file: (file, etag, rows) of its shards


def planned_in(plans: list[list[tuple[str, str, int]]], data: st.DataObject) -> list[list[PlannedShard]]:
    """Return plan files, of which each but the first may also carry, or retry, rows that were planned before."""
    files: list[list[PlannedShard]] = []
    known: list[Span] = []
    latest: dict[str, tuple[Span, int]] = {}  # uri -> its span that was planned last, and by which plan file
    for number, shards in enumerate(plans, 1):
        spans: dict[str, tuple[Span, tuple[CarriedRows, ...]]] = {}
        for uri, etag, rows in shards:
            before, plan = latest.get(uri, (None, 0))
            count = 0
            if before is not None and before.etag != etag:
                count = data.draw(st.integers(0, min(rows, before.rows)))
            carried: tuple[CarriedRows, ...] = ()
            if before is not None and count:
                carried = (of_runs(uri, etag, [(0, Origin(before.etag, plan, uri), before.start, count)]),)
            spans[uri] = Span(uri, etag, uri, count, rows), carried
        entries = [
            PlannedShard(make_shard([span], 0, "job"), 1, number, place, carried=carried)
            for place, (span, carried) in enumerate(spans.values())
        ]
        latest |= {uri: (span, number) for uri, (span, _) in spans.items()}
        for span in data.draw(st.lists(st.sampled_from(known), max_size=2, unique=True)) if known else ():
            row = Span(span.uri, span.etag, span.relative_path, span.start, span.start + 1)
            retry = make_shard([row], 0, "job", 1, (0,), number)
            entries.append(PlannedShard(retry, 1, number, len(entries), (0,), number))
        known += [span for span, _ in spans.values() if span.rows]
        files.append(entries)
    return files


@settings(max_examples=25, deadline=None)
@given(PLANS, st.data())
def test_files_that_share_rows_and_retries_are_judged_as_in_memory(
    plans: list[list[tuple[str, str, int]]], data: st.DataObject
) -> None:
    """Row ids come from a few names, so that files share them, or could not be read."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Storage(str(Path(folder) / "out")))
        for number, entries in enumerate(planned_in(plans, data), 1):
            ledger.append_plan(number, entries)
            for entry in entries:
                (span,) = entry.shard.spans
                rows = range(span.start, span.stop)
                names = [data.draw(st.sampled_from([f"{span.uri}:{n}", "x", "y", "z"])) for n in rows]
                samples = [SampleOutcome(f"{name}/0", 0, n, 0, "kept") for n, name in enumerate(names, span.start)]
                if data.draw(st.integers(0, 4)):  # else it is not committed
                    ledger.commit(Commit(entry.shard.id, "0", (), tuple(samples)))
        work = Uncovered.since(ledger, None, is_partial=True)
        entries = [entry for chunk in work.changes.chunks(ledger) for entry in chunk]
        commits = ledger.read_commits(entry.shard.id for entry in entries)
        shards = [shard for chunk in counted_shards(work) for shard in chunk]
        assert [shard.entry for shard in shards] == [entry for entry in entries if entry.shard.id in commits]
        judged = [each for shard in shards for each in shard.samples]
        counting = work.counting(entries)
        shares = work.changes.may_share_rows
        assert judged == list(judge(counting, commits) if shares else counting.made(commits))


def test_a_carried_row_counts_as_of_the_version_that_carries_it(tmp_path: Path) -> None:
    """Of a changed file, the row that is gone leaves its id to another file, and the carried row wins against it."""
    ledger = Ledger(Storage(str(tmp_path / "out")))
    carried = of_runs("a", "2", [(0, Origin("1", 1, "a"), 1, 1)])
    changed = PlannedShard(make_shard([Span("a", "2", "a", 1, 2)], 0, "job"), 1, 2, 0, carried=(carried,))
    first = [
        PlannedShard(make_shard([Span(uri, "1", uri, 0, 2)], 0, "job"), 1, 1, n) for n, uri in enumerate(("a", "b"))
    ]
    ledger.append_plan(1, first)
    ledger.append_plan(2, [changed])
    for entry, names in zip([*first, changed], (["gone", "stays"], ["gone", "stays"], ["new"]), strict=True):
        start = entry.shard.spans[0].start
        samples = (SampleOutcome(f"{name}/0", 0, n, 0, "kept") for n, name in enumerate(names, start))
        ledger.commit(Commit(entry.shard.id, "0", (), tuple(samples)))
    shards = [shard for chunk in counted_shards(Uncovered.since(ledger, None)) for shard in chunk]
    judged = [(shard.entry.shard.spans[0].uri, each.row, each.counts) for shard in shards for each in shard.samples]
    expected = [("a", "stays", True), ("b", "gone", True), ("b", "stays", False), ("a", "new", True)]
    assert judged == expected
