"""The account of partial versions: what they leave out, and which rows they must decide nothing new of.

A partial version covers the shards that its segments list: those that were committed when it was published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from tests.chaos.ledger_account import (
    Committed,
    CountedRows,
    Identity,
    Planned,
    Published,
    expected_samples,
)
from tests.chaos.problems import Problem, shown

Row = tuple[str, str, int]  # uri, etag, position


def check_left_out(version: Published, planned: Sequence[Planned], withheld: Collection[Identity]) -> Iterator[Problem]:
    """Check whether a version says what it leaves out. `withheld` are the samples that it withholds."""
    if version.covered is None:
        if version.fields.get("left_out") or version.fields.get("withheld"):
            yield Problem("partial", f"version {version.number} leaves out samples and is not partial.")
        return
    whole, partial = CountedRows(planned), CountedRows(planned, version.covered)
    left = absent = 0
    for entry in planned:
        is_covered = entry.shard in version.covered
        ends = [span for span in entry.spans if whole.versions.get(span.uri) == (span.etag, entry.plan)]
        absent += not is_covered and any(span.start == span.stop for span in ends)
        for uri, etag, position, _ in entry.identities():
            if whole.have(entry, uri, etag, position):
                absent += not is_covered
                left += not (is_covered and partial.have(entry, uri, etag, position))
    if not absent and not withheld:
        yield Problem("partial", f"version {version.number} is partial and lacks nothing.")
    says = version.fields["left_out"], version.fields["withheld"]
    if says != (left + len(withheld), len(withheld)):
        found = f"leaves out {left + len(withheld)} samples, of them {len(withheld)} withheld"
        yield Problem("partial", f"version {version.number} {found}, and says {says}.")


def waiting_rows(version: Published, planned: Sequence[Planned], commits: Mapping[str, Committed]) -> set[Row]:
    """Return the rows of which keep_best decides nothing new, because some of their samples are yet to come."""
    if version.covered is None or not version.fields["criteria"].get("keep_best"):
        return set()
    later = [entry for entry in planned if not entry.is_first]
    rows = {i[:3] for entry in later if entry.shard not in version.covered for i in entry.identities()}
    rounds = version.fields["spec"].get("quality", {}).get("regenerate", 0)
    has = Counter((i[:3], e.round) for e in later if e.round and not e.retry for i in e.identities())
    makers, needs = expected_samples(planned), Counter[tuple[Row, int]]()
    for entry in {entry.shard: entry for entry in planned if entry.shard in version.covered}.values():
        for identity, (_, outcome) in commits[entry.shard].samples.items():
            if outcome == "rejected" and entry.shard in makers.get(identity, ()) and entry.round < rounds:
                needs[identity[:3], entry.round + 1] += 1
    return rows | {row for (row, round_), count in needs.items() if count > has[row, round_]}


def check_withheld(version: Published, waiting: Collection[Row], earlier: Published | None) -> Iterator[Problem]:
    """Check that what is decided of rows that wait was decided by the version before."""
    stands = earlier.decisions if earlier is not None and earlier.number == version.number - 1 else None
    for row in version.outcomes:
        key = row["uri"], row["etag"], row["position"]
        is_new = row["since"] == version.number or (stands is not None and (row["id"], row["shard"]) not in stands)
        if key in waiting and is_new and not (version.refilter and row["since"] < version.number):
            yield Problem("withheld", f"version {version.number}: {shown((*key, row['index']))} waits for others.")
