"""What a run did, kept beside its dataset, in JSON and in Markdown: rows, rejects by reason, GPU-hours, cost.

    _reports/<end of the run>-<token>.json and .md      create-only; nothing depends on them

Every run that held workers leaves one, also one that stopped or failed; a driver that was killed leaves none.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from jointdit.errors import JointDiTError
from pipelines import ledger_names
from pipelines.fingerprint import code_version
from pipelines.ledger import FORMAT, OUTCOMES, new_token, now, parse
from pipelines.profile import profile_of, shares_of
from pipelines.progress import Progress
from pipelines.safe_text import markdown_text, mask_secrets
from pipelines.spec import JobSpec
from pipelines.storage import Storage

FOLDER = "_reports"
logger = logging.getLogger("pipelines")


@dataclass(frozen=True)
class RunReport:
    """One run."""

    name: str
    output: str
    finished: str
    code: str
    version: int | None  # that it published, or found; None: it stopped before, or failed
    stopped: str  # why it stopped before all was made; empty if it did not
    seconds: float  # from the first shard's start
    shards: int
    rows: int  # of committed shards; a row that is made again in a later round counts again
    samples: int
    counts: dict[str, int]
    rejected_by: dict[str, int]  # filter -> samples
    retries: dict[str, int]  # kind of fault -> shards, or steps of them, that went again
    bytes: int
    gpu_hours: float  # GPUs held by workers, times hours
    cpu_hours: float  # CPUs held by workers, times hours
    busy_share: float  # of the time that workers held them
    rows_per_gpu_hour: float | None  # None without GPUs
    cost: float  # by the price in the spec: of GPUs, or of CPUs where there were none
    currency: str
    computed_in: list[str] = field(default_factory=list)  # types; not model.dtype where a CPU has no units for it
    profile: dict[str, float] | None = None  # seconds by step, of a run with --profile (profile.py)

    def markdown(self) -> str:
        """The report for people."""
        end = f"version {self.version}" if self.version is not None else f"stopped, {self.stopped}"
        rate = f"{self.rows_per_gpu_hour:,.1f}" if self.rows_per_gpu_hour is not None else "no GPU"
        rows = [
            ("finished", f"{self.finished}, {end}"),
            ("rows", f"{self.rows:,} in {self.shards:,} shards"),
            ("samples", ", ".join(f"{self.counts[outcome]:,} {outcome}" for outcome in OUTCOMES)),
            ("rejected by", ", ".join(f"{kind} {count:,}" for kind, count in self.rejected_by.items()) or "nothing"),
            ("retries", ", ".join(f"{count:,} {kind}" for kind, count in self.retries.items()) or "none"),
            ("time", f"{self.seconds:,.0f} s"),
            ("GPU-hours", f"{self.gpu_hours:.3f}, busy {self.busy_share:.0%}"),
            ("rows a GPU-hour", rate),
            ("CPU-hours of workers", f"{self.cpu_hours:.3f}"),
            ("cost", f"{self.cost:,.2f} {self.currency}"),
            ("computed in", ", ".join(self.computed_in) or "nothing"),
            ("written", f"{self.bytes:,} bytes"),
            ("code", self.code),
        ]
        if self.profile is not None:
            shares = shares_of(self.profile)
            rows += [(f"time in {name}", f"{self.profile[name]:,.1f} s, {shares[name]:.1%}") for name in self.profile]
        lines = [f"| {markdown_text(name)} | {markdown_text(value)} |" for name, value in rows]
        return "\n".join(
            [
                f"# Run of {markdown_text(self.name)}",
                "",
                markdown_text(self.output),
                "",
                "| | |",
                "|---|---|",
                *lines,
                "",
            ]
        )


def report_of(spec: JobSpec, progress: Progress, version: int | None, stopped: str, profile: bool = False) -> RunReport:
    """The report of a run that has ended; with its `profile`, where that was asked for."""
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
    """Keep the report of a run that held workers; the address of its Markdown, empty where it could not be kept."""
    if not report.cpu_hours and not report.gpu_hours:
        return ""
    when = re.sub(r"[^0-9T]", "", report.finished.partition("+")[0])
    name = f"{FOLDER}/{when}-{new_token()}"
    data = json.dumps({**asdict(report), "format": FORMAT}, indent=2)
    try:
        storage.create_bytes(f"{name}.json", f"{data}\n".encode())
        storage.create_bytes(f"{name}.md", report.markdown().encode())
    except (JointDiTError, OSError) as error:  # of a run that may have failed for that
        logger.warning("the report of this run was not kept: %s", error)
        return ""
    return storage.uri_of(f"{name}.md")


def report_names(storage: Storage) -> list[str]:
    """Names of the reports there are, in the order of their ends."""
    names = (match[0] for match in ledger_names.in_folder(storage, FOLDER))
    return [f"{FOLDER}/{name}" for name in names if name.endswith(".json")]


def read_report(storage: Storage, name: str) -> RunReport | None:
    """A report; None where it cannot be read: another version wrote it."""
    try:
        fields = parse(storage.read_bytes(name), storage.uri_of(name))
        return RunReport(**{key: fields[key] for key in RunReport.__dataclass_fields__ if key in fields})
    except (FileNotFoundError, TypeError, JointDiTError):
        return None


def cost_so_far(reports: Sequence[RunReport]) -> dict[str, float]:
    """Currency -> what the runs cost; those that cost nothing by their spec are left out."""
    costs: dict[str, float] = {}
    for report in reports:
        if report.cost:
            costs[report.currency] = costs.get(report.currency, 0.0) + report.cost
    return costs
