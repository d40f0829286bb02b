"""Check the rows of changed files that a plan carries instead of planning them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.ledger.carried import Origin, of_runs
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.names import plan_file


def check_carried(planned: Sequence[PlannedShard]) -> Iterator[str]:
    """Check that the plan files that carried rows name as their origins have planned them."""
    runs: dict[str, list[tuple[int, Origin, int, int]]] = {rows.uri: [] for entry in planned for rows in entry.carried}
    for entry in planned:
        for span in entry.shard.spans if entry.is_first else ():
            if span.uri in runs:
                origin = Origin(span.etag, entry.plan, span.relative_path)
                runs[span.uri].append((span.start, origin, span.start, span.rows))
    rows_of = {uri: of_runs(uri, "", of_file) for uri, of_file in runs.items()}
    for entry in planned:
        for rows in entry.carried:
            for number, start, count in zip(rows.origin, rows.start, rows.rows, strict=True):
                origin, stop = rows.origins[number], int(start + count)
                known = rows_of[rows.uri].count(origin.etag, int(start), stop, origin.plan)
                if known != count or origin.plan >= entry.plan:
                    name, planner = plan_file(entry.plan), plan_file(origin.plan)
                    yield f"{name} carries rows {start} to {stop} of {rows.uri}, which {planner} did not plan."
