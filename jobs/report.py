"""What the commands print: input text as it is, never as markup or as an escape that the terminal would obey."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from pipelines.safe_text import mask_secrets, printable

if TYPE_CHECKING:
    from pipelines.plan import PlanPreview
    from pipelines.run import RunSummary
    from pipelines.status import Status
    from pipelines.validate import Validation

console = Console(highlight=False)


class PlainFormatter(logging.Formatter):
    """One line a record, without credentials and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(mask_secrets(super().format(record)))


def say(what: object) -> None:
    """Print one line."""
    console.print(printable(str(what)), soft_wrap=True, markup=False, emoji=False)


def log_progress() -> None:
    """Let a run's log lines through to stderr; a terminal shows a live line instead."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pipelines").setLevel(logging.INFO)


def show_files(files: Iterable[Path]) -> None:
    """The path of each file as it is written."""
    for file in files:
        say(file)


def show_progress(steps: Iterable[int], total: int, what: str) -> None:
    """A bar over `total` steps, then one line."""
    for _ in track(
        steps, description="Rendering", total=total, console=console, transient=True, disable=not console.is_terminal
    ):
        pass
    say(f"{total} {what}")


def show_run(summary: RunSummary) -> None:
    """What a run did, and where to look."""
    version = summary.version
    if summary.samples_now:
        rate = summary.samples_now / max(summary.seconds, 1e-3)
        made = f"{several(summary.samples_now, 'sample')} in {several(summary.committed_now, 'shard')}"
        say(f"{made} in {summary.seconds:.0f} s, {rate:.2f} samples/s")
    if summary.committed_before:
        say(f"{several(summary.committed_before, 'shard')} of an earlier run kept")
    if version.reasons:
        say(f"rejected by: {', '.join(f'{kind} {number}' for kind, number in version.reasons.items())}")
    state = "published" if summary.is_new else "is the latest"
    say(f"version {version.number} {state}: {counted(version.counts)}")
    say(f"dataset {summary.output}, gallery {summary.output}/gallery/index.html")


def show_plan(plan: PlanPreview) -> None:
    """What a run would do."""
    done = f"{several(plan.committed_shards, 'shard')}, {several(plan.committed_samples, 'sample')}"
    pending = f"{several(plan.pending_shards, 'shard')}, {several(plan.pending_samples, 'sample')}"
    new = f"{several(plan.new_shards, 'shard')} of {several(plan.new_rows, 'row')} not planned before"
    rows = [
        ("job", f"{plan.name} ({plan.task})"),
        ("output", plan.output),
        ("done", done),
        ("to do", f"{pending}; {new}"),
        ("output expected", readable(plan.output_bytes)),
        ("weights", f"{readable(plan.weights_bytes)} a worker"),
        ("in flight", f"up to {readable(plan.in_flight_bytes)} a worker in Ray's object store"),
    ]
    rows += [("changed input", uri) for uri in plan.changed] + [("input gone", uri) for uri in plan.removed]
    show_pairs(rows)


def show_status(status: Status) -> None:
    """How far a job is."""
    share = status.committed_samples / status.samples if status.samples else 0.0
    latest = status.latest
    version = f"{latest.number}, {counted(latest.counts)}" if latest else "none yet"
    rows = [
        ("job", f"{status.name} ({status.task}), since {status.created}"),
        ("output", status.output),
        ("shards", f"{status.committed_shards} of {status.shards} committed"),
        ("samples", f"{status.committed_samples} of {status.samples} ({share:.0%}): {counted(status.counts)}"),
        ("round", str(status.round)),
        ("version", version),
    ]
    rows += [("crashes", f"shard {shard}: {number}") for shard, number in status.crashes.items()]
    show_pairs(rows)


def show_pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and what they are, in two columns."""
    for name, value in rows:
        say(f"{name:<16} {value}")


def show_validation(found: Validation) -> bool:
    """What a recount found, the problems line by line; returns whether the dataset is whole."""
    for note in found.notes:
        say(f"note: {note}")
    for problem in found.problems:
        say(problem)
    read = f"{several(found.files, 'file')}, {readable(found.bytes)}, {several(found.pictures, 'picture')}"
    read += f", {several(found.pointclouds, 'point cloud')}" if found.pointclouds else ""
    if found.problems:
        say(f"{found.output} is damaged: {several(len(found.problems), 'problem')} in {read}.")
    else:
        say(f"{found.output} is whole: version {found.version} with {counted(found.counts)}; {read}.")
    return not found.problems


def counted(counts: Mapping[str, int]) -> str:
    """Samples by outcome: 24 kept, 0 rejected, 0 quarantined."""
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.items())


def several(number: int, thing: str) -> str:
    """1 shard, 2 shards, 1,000 shards."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def readable(size_bytes: float) -> str:
    """Bytes in the unit people read: 1.2 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"
