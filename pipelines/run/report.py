"""The report of a run, stored beside its dataset as JSON and Markdown.

    _reports/<end of the run>-<token>.json and .md      create-only; nothing depends on them

Every run that held workers writes one, also if it stopped at a limit or failed; a driver that was killed writes none.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict

from jointdit.errors import JointDiTError
from pipelines.engine.progress import Progress
from pipelines.engine.usage import profile_of, shares_of
from pipelines.ledger.entries import FORMAT, OUTCOMES, new_token, now
from pipelines.ledger.reports import FOLDER, RunReport
from pipelines.model.fingerprint import code_version
from pipelines.spec.job import JobSpec
from pipelines.store.safe_text import markdown_text, mask_secrets
from pipelines.store.storage import Storage

logger = logging.getLogger("pipelines")


def report_of(spec: JobSpec, progress: Progress, version: int | None, stopped: str, profile: bool = False) -> RunReport:
    """The report of a run that has ended, with its profile if `profile` is set."""
    usage = progress.usage
    return RunReport(
        name=spec.name,
        output=spec.output.uri,
        finished=now(),
        code=code_version(),
        version=version,
        stopped="" if version is not None else mask_secrets(stopped),
        seconds=round(progress.seconds, 3),
        shards=progress.shards,
        rows=progress.rows,
        samples=progress.counts.total(),
        counts={outcome: progress.counts[outcome] for outcome in OUTCOMES},
        rejected_by=dict(sorted(progress.reasons.items())),
        retries=dict(sorted(progress.retries.items())),
        bytes=progress.bytes,
        gpu_hours=usage.gpu_hours,
        cpu_hours=usage.cpu_hours,
        busy_share=usage.busy_share,
        rows_per_gpu_hour=progress.rows / usage.gpu_hours if usage.gpu_hours else None,
        cost=usage.cost(spec.price),
        currency=spec.price.currency,
        computed_in=sorted(progress.dtypes),
        profile=profile_of(progress.seconds_of, usage) if profile else None,
    )


def keep_report(storage: Storage, report: RunReport) -> str:
    """Store the report of a run that held workers. Returns the address of its Markdown, empty if there is none."""
    if not report.cpu_hours and not report.gpu_hours:
        return ""
    when = re.sub(r"[^0-9T]", "", report.finished.partition("+")[0])
    name = f"{FOLDER}/{when}-{new_token()}"
    data = json.dumps({**asdict(report), "format": FORMAT}, indent=2)
    try:
        storage.create_bytes(f"{name}.json", f"{data}\n".encode())
        storage.create_bytes(f"{name}.md", markdown(report).encode())
    except (JointDiTError, OSError) as error:  # the run may have failed because of the same store
        logger.warning("the report of this run could not be stored: %s", error)
        return ""
    return storage.uri_of(f"{name}.md")


def markdown(report: RunReport) -> str:
    """The report as Markdown."""
    end = f"version {report.version}" if report.version is not None else f"stopped, {report.stopped}"
    rate = f"{report.rows_per_gpu_hour:,.1f}" if report.rows_per_gpu_hour is not None else "no GPU"
    rows = [
        ("finished", f"{report.finished}, {end}"),
        ("rows", f"{report.rows:,} in {report.shards:,} shards"),
        ("samples", ", ".join(f"{report.counts[outcome]:,} {outcome}" for outcome in OUTCOMES)),
        ("rejected by", ", ".join(f"{kind} {count:,}" for kind, count in report.rejected_by.items()) or "nothing"),
        ("retries", ", ".join(f"{count:,} {kind}" for kind, count in report.retries.items()) or "none"),
        ("time", f"{report.seconds:,.0f} s"),
        ("GPU-hours", f"{report.gpu_hours:.3f}, busy {report.busy_share:.0%}"),
        ("rows a GPU-hour", rate),
        ("CPU-hours of workers", f"{report.cpu_hours:.3f}"),
        ("cost", f"{report.cost:,.2f} {report.currency}"),
        ("computed in", ", ".join(report.computed_in) or "nothing"),
        ("written", f"{report.bytes:,} bytes"),
        ("code", report.code),
    ]
    if report.profile is not None:
        shares = shares_of(report.profile)
        rows += [(f"time in {name}", f"{report.profile[name]:,.1f} s, {shares[name]:.1%}") for name in report.profile]
    lines = [f"| {markdown_text(name)} | {markdown_text(value)} |" for name, value in rows]
    return "\n".join(
        [
            f"# Run of {markdown_text(report.name)}",
            "",
            markdown_text(report.output),
            "",
            "| | |",
            "|---|---|",
            *lines,
            "",
        ]
    )
