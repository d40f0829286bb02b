"""Output for scripts: one JSON object on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipelines.run.job import RunSummary
    from pipelines.run.preview import PlanPreview
    from pipelines.spec.running import PriceSpec

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts; log lines go to stderr.")]


@contextlib.contextmanager
def stdout_for_json(as_json: bool) -> Iterator[None]:
    """Send what is printed inside to stderr if `as_json`, so that stdout has the JSON alone."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def show_json(content: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(content, indent=2))


def run_json(summary: RunSummary, price: PriceSpec) -> dict[str, Any]:
    """Return what a run did: the published version, the samples of this run, its cost, and what is left of the plan."""
    version, usage = summary.version, summary.usage
    return {
        "output": summary.output,
        "version": version.number if version else None,
        "is_new": summary.is_new,
        "counts": version.counts if version else None,
        "rejected_by": version.reasons if version else None,
        "shards_before": summary.committed_before,
        "shards_now": summary.committed_now,
        "samples_now": summary.samples_now,
        "counts_now": summary.counts_now,
        "seconds": summary.seconds,
        "gpu_hours": usage.gpu_hours,
        "cpu_hours": usage.cpu_hours,
        "busy_share": usage.busy_share,
        "cost": usage.cost(price),
        "currency": price.currency,
        "input_gone": list(summary.removed),
        "stopped": asdict(summary.stopped) if summary.stopped else None,
        "report": summary.report or None,
        "profile": summary.profile,
    }


def plan_json(plan: PlanPreview) -> dict[str, Any]:
    """Return what a run would do, with the bytes that a worker's GPU must hold and the totals of the sampled rows."""
    sample = {name: getattr(plan.sample, name) for name in ("rows", "failed", "reason", "row_bytes", "row_pixels")}
    return {
        **asdict(plan),
        "memory": {"bytes": plan.memory.bytes, **asdict(plan.memory)} if plan.memory else None,
        "sample": {**sample, **asdict(plan.sample)},
    }
