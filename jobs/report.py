"""What the commands print: markup in input text stays text, control characters are escaped."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from pipelines.store.safe_text import mask_secrets, printable

if TYPE_CHECKING:
    from pipelines.dataset.diff import Difference
    from pipelines.dataset.garbage import Garbage
    from pipelines.dataset.refilter import Refiltered
    from pipelines.dataset.status import RoundStatus, Status
    from pipelines.dataset.validation.validate import Validation
    from pipelines.engine.usage import Usage
    from pipelines.ledger.versions import Version
    from pipelines.model.memory import MemoryBound, MemoryNeed
    from pipelines.plan.retry import RetryPlan
    from pipelines.run.job import RunSummary
    from pipelines.run.preview import PlanPreview
    from pipelines.spec.running import PriceSpec

console = Console(highlight=False)
EXAMPLES = 10  # samples of each kind of change that `jointdit diff` prints
STATES = {"live": "", "stale": " (gone: its lease does not change)", "unknown": " (--watch shows whether it is active)"}


LOG_FIELDS = ("shard", "attempt", "stage", "fault", "outcomes", "seconds", "worker")


class PlainFormatter(logging.Formatter):
    """Format a record as one line, without credentials and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(mask_secrets(super().format(record)))


class JsonFormatter(logging.Formatter):
    """Format a record as a JSON object: time (UTC), level, logger, message, and its fields of LOG_FIELDS."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: getattr(record, name) for name in LOG_FIELDS if hasattr(record, name)},
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return mask_secrets(json.dumps(content, default=str))


def say(line: object) -> None:
    """Print one line."""
    console.print(printable(str(line)), soft_wrap=True, markup=False, emoji=False)


def log_progress() -> None:
    """Send a run's log lines to stderr; a terminal shows a live line instead.

    With JOINTDIT_LOG=json each line is a JSON object, and each committed shard has one.
    """
    as_json = os.environ.get("JOINTDIT_LOG") == "json"
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else PlainFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("pipelines").setLevel(logging.INFO)
    logging.getLogger("pipelines.shards").setLevel(logging.INFO if as_json else logging.WARNING)


def show_files(files: Iterable[Path]) -> None:
    """Print the path of each file after it is written."""
    for file in files:
        say(file)


def show_progress(steps: Iterable[int], total: int, result: str) -> None:
    """Show a bar over `total` steps, then print the total and the result."""
    for _ in track(
        steps, description="Rendering", total=total, console=console, transient=True, disable=not console.is_terminal
    ):
        pass
    say(f"{total} {result}")


def show_run(summary: RunSummary, price: PriceSpec) -> None:
    """Print what a run did and where the dataset is; if it stopped at a limit, what is left."""
    if summary.samples_now:
        rate = summary.samples_now / max(summary.seconds, 1e-3)
        made = f"{several(summary.samples_now, 'sample')} in {several(summary.committed_now, 'shard')}"
        say(f"{made} in {summary.seconds:.0f} s, {rate:.2f} samples/s")
    if summary.committed_before:
        say(f"{several(summary.committed_before, 'shard')} of an earlier run kept")
    if summary.usage.held_seconds:
        say(taken(summary.usage, price))
        say(f"report {summary.report}")
    if summary.stopped is not None:
        left = f"{several(summary.stopped.shards, 'shard')}, {several(summary.stopped.samples, 'sample')} are left"
        say(f"stopped, {summary.stopped.reason}: {left}; run the same command again to resume")
    if summary.profile is not None:
        show_profile(summary.profile)
    version = summary.version
    if version is not None:
        if version.reasons:
            say(f"rejected by: {', '.join(f'{kind} {number}' for kind, number in version.reasons.items())}")
        state = "published" if summary.is_new else "is the latest"
        say(f"version {version.number} {state}: {counted(version.counts)}")
        say(f"dataset {summary.output}, gallery {summary.output}/gallery/index.html")


def show_profile(profile: Mapping[str, float]) -> None:
    """Print where the time of a run went."""
    from rich.table import Table

    from pipelines.engine.usage import WORKERS, shares_of

    table, shares = Table("step", "seconds", "share", "of"), shares_of(profile)
    for name, seconds in profile.items():
        of = "workers" if name in WORKERS else "read and finish tasks"
        table.add_row(name, f"{seconds:,.2f}", f"{shares[name]:.1%}", of, end_section=name == WORKERS[-1])
    console.print(table)


def taken(usage: Usage, price: PriceSpec) -> str:
    """Format what a run used of the cluster: 1.25 GPU-hours, busy 92%, 3.75 USD."""
    hours = f"{usage.gpu_hours:.3g} GPU-hours" if usage.gpus else f"{usage.cpu_hours:.3g} CPU-hours"
    costs = f", {usage.cost(price):.2f} {price.currency}" if usage.cost(price) else ""
    return f"{hours}, busy {usage.busy_share:.0%}{costs}"


def show_plan(plan: PlanPreview) -> None:
    """Print what a run would do."""
    done = f"{several(plan.committed_shards, 'shard')}, {several(plan.committed_samples, 'sample')}"
    pending = f"{several(plan.pending_shards, 'shard')}, {several(plan.pending_samples, 'sample')}"
    new = f"{several(plan.new_shards, 'shard')} of {several(plan.new_rows, 'row')} not planned before"
    regeneration = f"{several(plan.regenerated_samples, 'sample')} in place of rejected ones; "
    regeneration += f"round {plan.round} of at most {plan.regenerate} is planned"
    rows = [
        ("job", f"{plan.name} ({plan.task})"),
        ("output", plan.output),
        ("done", done),
        ("to do", f"{pending}; {new}"),
        *([("input", str(plan.rows))] if plan.committed_shards else []),
        *([("new seeds", regeneration)] if plan.regenerate else []),
        *[("input sample", line) for line in sample_lines(plan)],
        ("output expected", readable(plan.output_bytes)),
        ("weights", f"{readable(plan.weights_bytes)} per worker"),
        ("in flight", f"up to {readable(plan.in_flight_bytes)} per worker in Ray's object store"),
        ("takes", expected_work(plan)),
    ]
    for field, source, terms in plan.sources:
        rows += [(field, source), ("- its licence", terms)]
    if plan.memory is not None:
        rows += [("GPU memory", line) for line in memory_lines(plan.memory)]
    rows += [("score", f"{kind}: {cost} per sample") for kind, cost in plan.scores]
    rows += [("changed input", str(change)) for change in plan.changes]
    rows += [("input gone", uri) for uri in plan.removed]
    rows += [("input moved", f"{uri} -> {to}") for uri, to in plan.moved]
    rows += [("input back", uri) for uri in plan.restored]
    rows += [("note", note) for note in plan.notes]
    show_pairs(rows)


def sample_lines(plan: PlanPreview) -> list[str]:
    """Return lines on the rows that were read: how many of each kind would be quarantined, and their size."""
    sample = plan.sample
    lines = [
        f"{kind.failed} of {several(kind.rows, 'row')} of {kind.kind} would be quarantined, such as {kind.reason}"
        for kind in sample.kinds
        if kind.failed
    ]
    if sample.rows and not lines:
        lines.append(f"{several(sample.rows, 'row')} of {several(len(sample.kinds), 'kind')}: all can be read")
    if sample.row_pixels:
        size = f"{sample.row_pixels / 1e6:.3g} megapixels, {readable(sample.row_bytes)}"
        lines.append(f"a row has {size} decoded, on average")
    if sample.all_kinds > len(sample.kinds):
        lines.append(f"{sample.all_kinds - len(sample.kinds):,} other folders and formats were not sampled")
    if plan.pending_samples and not sample.rows and plan.task != "joint":
        lines.append("no row of a planned table was read, so the bytes below do not count the input's images")
    return lines


def expected_work(plan: PlanPreview) -> str:
    """Format the GPU-hours and the cost of the pending samples at the measured rate."""
    if plan.rate is None:
        return "no measured rate yet: it comes from the reports of earlier runs of this output"
    hours = plan.cpu_hours if plan.gpu_hours is None else plan.gpu_hours
    cost = f", {plan.cost:,.2f} {plan.currency}" if plan.cost is not None else ""
    rate = f"{plan.rate.samples / plan.rate.hours:,.3g} samples per {plan.rate.device}-hour"
    return f"{hours:.3g} {plan.rate.device}-hours{cost}, at {rate} in {several(plan.rate.runs, 'earlier run')}"


def memory_lines(need: MemoryNeed | MemoryBound) -> list[str]:
    """Return lines on what a worker's GPU must hold: the total, weights by component, a batch by stage; or a bound."""
    from pipelines.model.memory import MemoryBound

    if isinstance(need, MemoryBound):
        how = "with activations as wide as FLUX.1's; set resources.gpu_memory_gb for an estimate"
        return [f"below {readable(need.bytes)} per worker, {how}"]
    estimate = need.estimate
    whose = " (FLUX.1-dev's architecture: the checkpoint is not on this machine)" if need.is_assumed else ""
    parts = ", ".join(f"{name} {readable(size)}" for name, size in estimate.weights.items() if size)
    stages = ", ".join(f"{name} {readable(size)}" for name, size in estimate.activations.items())
    return [
        f"{readable(need.bytes)} per worker, most of it in {estimate.peak_stage}{whose}",
        f"weights: {parts}{f', models of scores {readable(need.scorers)}' if need.scorers else ''}",
        f"a batch of {need.batch_size} at {need.height} x {need.width}: {stages}",
    ]


def show_status(status: Status) -> None:
    """Print the progress of a job."""
    for line in status_lines(status):
        say(line)


def status_lines(status: Status) -> list[str]:
    """Return the progress of a job as lines of two columns."""
    share = status.committed_samples / status.samples if status.samples else 0.0
    latest = status.latest
    version = f"{latest.number}, {counted(latest.counts)}{partial(latest)}" if latest else "none yet"
    rows = [
        ("job", f"{status.name} ({status.task}), since {status.created}"),
        ("output", status.output),
        ("shards", f"{status.committed_shards} of {status.shards} committed"),
        ("samples", f"{status.committed_samples} of {status.samples} ({share:.0%}): {counted(status.counts)}"),
        *([("round", "0")] if status.round == 0 else [(f"round {r.number}", _round_line(r)) for r in status.rounds]),
        ("version", version if status.is_published or not latest else f"{version}; more is planned: run again"),
    ]
    if status.runs:
        costs = ", ".join(f"{cost:,.2f} {currency}" for currency, cost in status.costs.items())
        hours = f"{status.gpu_hours:.3g} GPU-hours" if status.gpu_hours else f"{status.cpu_hours:.3g} CPU-hours"
        rows.append(("taken", f"{hours}{', ' if costs else ''}{costs} by {several(status.runs, 'run')} so far"))
    rows += [("driver", f"{lease}{STATES[state]}") for lease, state in status.leases]
    rows += [("crashes", f"shard {shard}: {number}") for shard, number in status.crashes.items()]
    return [f"{name:<16} {value}" for name, value in rows]


def _round_line(status: RoundStatus) -> str:
    return f"{sum(status.counts.values())} of {status.samples} samples: {counted(status.counts)}"


def show_pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    for name, value in rows:
        say(f"{name:<16} {value}")


def show_validation(found: Validation) -> bool:
    """Print the problems of a recount line by line, then a summary; return whether the dataset is whole."""
    for note in found.notes:
        say(f"note: {note}")
    for problem in found.problems:
        say(problem)
    read = f"{several(found.files, 'file')}, {readable(found.bytes)}, {several(found.images, 'image')}"
    read += f", {several(found.pointclouds, 'point cloud')}" if found.pointclouds else ""
    if found.problems:
        say(f"{found.output} is damaged: {several(len(found.problems), 'problem')} in {read}.")
    else:
        what = f"version {found.version} with {counted(found.counts)}"
        what += f", which is partial, {several(found.left_out, 'planned sample')} left out" if found.left_out else ""
        say(f"{found.output} is whole: {what}; {read}.")
    return not found.problems


def show_published(uri: str, version: Version | None, is_new: bool) -> None:
    """Print what `jointdit publish` did."""
    if version is None:
        say(f"{uri} has no committed sample yet: nothing was published.")
    elif is_new:
        say(f"version {version.number} published: {counted(version.counts)}{partial(version)}")
    else:
        content = f"{counted(version.counts)}{partial(version)}"
        say(f"version {version.number} is the latest: {content}; nothing more is committed.")


def show_retry(plan: RetryPlan) -> None:
    """Print what was planned again."""
    if not plan.shards:
        say(f"{plan.output} has nothing to retry: {counted(plan.counts)}.")
        return
    planned = f"{several(sum(plan.counts.values()), 'sample')} in {several(plan.shards, 'shard')}"
    say(f"planned again: {planned}: {counted(plan.counts)}")
    say("`jointdit run` generates them; in the version that it publishes they replace the old ones.")
    if plan.counts.get("rejected"):
        say("Their seeds stay the same: for other images of rejected prompts set quality.regenerate.")


def show_refilter(found: Refiltered) -> None:
    """Print what other filters changed."""
    version = found.version
    if not found.is_new:
        say(f"version {version.number} has these filters already: {counted(version.counts)}; nothing changed.")
        return
    moved = ", ".join(f"{number:,} {kind}" for kind, number in found.moved.items()) or "no sample moved"
    say(f"{moved}; {several(len(found.rewritten), 'shard')} rewritten")
    if version.reasons:
        say(f"rejected by: {', '.join(f'{kind} {number}' for kind, number in version.reasons.items())}")
    if found.without_points:
        say(f"{several(found.without_points, 'kept sample')} without a point cloud: their images are not stored.")
    say(f"version {version.number} published: {counted(version.counts)}{partial(version)}")
    say("These filters also apply to later runs, until the next refilter.")


def show_garbage(found: Garbage, dry_run: bool) -> None:
    """Print what was or would be deleted: one line per attempt, then the sum."""
    attempts: dict[str, list[int]] = {}
    for item in found.objects:
        parts = item.path.split("/")
        attempts.setdefault("/".join(parts[:2]), []).append(item.size)
    for name, sizes in attempts.items():
        say(f"{name}  {several(len(sizes), 'object')}, {readable(sum(sizes))}")
    verb = "would be deleted" if dry_run else "deleted"
    say(f"{several(len(found.objects), 'object')}, {readable(found.bytes)} {verb}")
    if found.undecided:
        size = readable(found.undecided_bytes)
        stay = f"{several(found.undecided, 'object')}, {size} stay"
        say(f"{stay}: their shard has no commit yet, or their version is not published")


def show_versions(uri: str, versions: Sequence[Version]) -> None:
    """Print one line per version, the latest last."""
    if not versions:
        say(f"{uri} has no version yet: run the job to its end, or `jointdit publish` what is made.")
    for version in versions:
        size = readable(sum(size.bytes for size in version.sizes.values()))
        plans = f"plan{'s' if len(version.plans) > 1 else ''} {', '.join(map(str, version.plans))}"
        gone = f", {version.superseded} superseded" if version.superseded else ""
        by = f"; filters of the refilter to version {version.refilter}" if version.refilter else ""
        counts = f"{counted(version.counts)}{gone}{partial(version)}"
        say(f"{version.number:>4}  {version.created}  {counts}; {plans}; {size}{by}")


def show_difference(found: Difference) -> None:
    """Print what changed, by kind, with the first few samples of each."""
    from pipelines.dataset.diff import tally

    first, second = (f"{each.number}{partial(each)}" for each in (found.first, found.second))
    say(f"{found.output}: version {first} -> {second}")
    kinds = {"added": found.added, "gone": found.gone, "changed": found.changed, "made again": found.made_again}
    for name, changes in kinds.items():
        kinds_of = ", ".join(f"{number} {kind}" for kind, number in tally(changes).items())
        say(f"{name:<16} {len(changes)}{': ' if changes else ''}{kinds_of}")
        for change in changes[:EXAMPLES]:
            say(f"  {change.id}{'  ' if change.reasons else ''}{'; '.join(change.reasons)}")
        if len(changes) > EXAMPLES:
            say(f"  and {len(changes) - EXAMPLES:,} more (--json has them all)")
    say(f"{'the same':<16} {found.same}")
    for kind, number in found.reasons.items():
        say(f"{'rejected by':<16} {kind} {number:+d}")


def counted(counts: Mapping[str, int]) -> str:
    """Format samples by outcome: 24 kept, 0 rejected, 0 quarantined."""
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.items())


def partial(version: Version) -> str:
    """Format what a partial version leaves out; empty for a whole one."""
    return f", partial: {several(version.left_out, 'planned sample')} left out" if version.is_partial else ""


def several(number: int, thing: str) -> str:
    """Format a number of things: 1 shard, 2 shards, 1,000 shards."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def readable(size_bytes: float) -> str:
    """Format bytes with a unit: 1.2 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"
