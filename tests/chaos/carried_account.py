"""The account of changed files: carried rows have not changed, others are made, and no id is reused.

It knows the content of every input file from the history, and shares no code with the engine.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tests.chaos.ledger_account import Committed, CountedRows, Planned, current_versions, expected_samples
from tests.chaos.world import InputRow

Contents = Mapping[tuple[str, str], Sequence[InputRow]]  # (uri, etag) -> rows
Fault = tuple[str, str]  # its kind, and the fault in words
MOVED = "moved:"


def check_carried(
    number: int, plans: Mapping[int, Sequence[Planned]], commits: Mapping[str, Committed], contents: Contents
) -> Iterator[Fault]:
    """Check what a new plan file carries.

    Args:
        commits: those that existed before the operation that wrote the plan file.
    """
    earlier = [entry for n in sorted(plans) if n < number for entry in plans[n]]
    firsts = {
        (entry.plan, span.uri, span.etag, position)
        for entry in earlier
        for span in entry.spans
        for position in range(span.start, span.stop)
        if entry.is_first
    }
    name = f"_plan/{number:06d}"
    carried = [row for entry in plans[number] for row in entry.carried]
    for row in carried:
        if (row.plan, row.uri, row.made_etag, row.made_position) not in firsts:
            yield "carried", f"{name} carries row {row.position} of {row.uri}, which plan file {row.plan} did not plan."
        now, then = contents[row.uri, row.etag][row.position], contents[row.uri, row.made_etag][row.made_position]
        if now != then:
            yield "carried", f"{name} carries row {row.position} of {row.uri}: it is {now}, and was made of {then}."
    counts = Counter((row.uri, contents[row.uri, row.etag][row.position]) for row in carried)
    current = current_versions(plans[number])
    made = _rows_that_were_read(earlier, commits, {uri for uri in current if uri in current_versions(earlier)})
    for uri, (etag, _) in current.items():
        if etag.startswith(MOVED) or uri not in made:
            continue
        listed = Counter(contents[uri, etag])
        for row, times in Counter(contents[key[:2]][key[2]] for key in made[uri]).items():
            if counts[uri, row] < min(times, listed[row]):
                yield "made again", f"{name} plans {row} of {uri} again, although it was made and has not changed."


def _rows_that_were_read(
    planned: Sequence[Planned], commits: Mapping[str, Committed], uris: set[str]
) -> dict[str, set[tuple[str, str, int]]]:
    """Return the rows of the last planned versions of some files of which every planned sample was read."""
    ends: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for identity, shards in expected_samples(planned).items():
        if identity[0] in uris:
            made = {commits[shard].samples[identity][1] for shard in shards & commits.keys()}
            ends[identity[:3]] |= made or {"pending"}
    rows: dict[str, set[tuple[str, str, int]]] = {uri: set() for uri in uris}
    for key, outcomes in ends.items():
        if outcomes <= {"kept", "rejected"}:
            rows[key[0]].add(key)
    return rows


def check_ids(commits: Mapping[str, Committed], contents: Contents) -> Iterator[Fault]:
    """Check that no row without an id of its own has the id of a row with another text."""
    texts: dict[str, set[str]] = defaultdict(set)
    for commit in commits.values():
        for (uri, etag, position, _), (name, outcome) in commit.samples.items():
            row = contents[uri, etag][position]
            if not row.id and outcome != "quarantined":
                texts[name.rpartition("/")[0]].add(row.text)
    for name, different in texts.items():
        if len(different) > 1:
            yield "reused id", f"the rows {sorted(different)} have the id {name}."


def places_of(planned: Sequence[Planned], listed: Mapping[str, str]) -> dict[tuple[str, str, int], tuple[str, int]]:
    """Return (uri, etag, position) of rows of listed files (uri -> etag) -> etag and position with which they count."""
    carried = {(row.uri, row.etag, row.position): row for row in CountedRows(planned).carried.values()}
    return {key: (r.made_etag, r.made_position) for key, r in carried.items() if listed.get(key[0]) == key[1]}
