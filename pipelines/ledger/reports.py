"""The stored report of a run, and how it is read. run/report.py makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jointdit.errors import JointDiTError
from pipelines.ledger import names as ledger_names
from pipelines.ledger.entries import parse
from pipelines.store.storage import Storage

FOLDER = "_reports"
RATED_RUNS = 20  # the last ones, whose rate is taken


@dataclass(frozen=True)
class RunReport:
    """The report of one run."""

    name: str
    output: str
    finished: str
    code: str
    version: int | None  # the version that it published or found; None where it stopped before, or failed
    stopped: str  # why it stopped before all was made; empty if it did not
    seconds: float  # from the start of the first shard
    shards: int
    rows: int  # rows of committed shards; a row that is regenerated in a later round counts again
    samples: int
    counts: dict[str, int]
    rejected_by: dict[str, int]  # filter -> samples
    retries: dict[str, int]  # kind of fault -> shards, or steps of shards, that were retried
    bytes: int
    gpu_hours: float  # GPUs held by workers, times hours
    cpu_hours: float  # CPUs held by workers, times hours
    busy_share: float  # share of that time in which workers were busy
    rows_per_gpu_hour: float | None  # None without GPUs
    cost: float  # by the price in the spec: of GPUs, or of CPUs where there were none
    currency: str
    computed_in: list[str] = field(default_factory=list)  # dtypes; not model.dtype where a CPU does not support it
    profile: dict[str, float] | None = None  # seconds by step, of a run with --profile


def report_names(storage: Storage) -> list[str]:
    """Return the names of the stored reports, in the order in which the runs ended."""
    names = (match[0] for match in ledger_names.in_folder(storage, FOLDER))
    return [f"{FOLDER}/{name}" for name in names if name.endswith(".json")]


def read_report(storage: Storage, name: str) -> RunReport | None:
    """Return a report, or None where it cannot be read, such as one of another version."""
    try:
        fields = parse(storage.read_bytes(name), storage.uri_of(name))
        return RunReport(**{key: fields[key] for key in RunReport.__dataclass_fields__ if key in fields})
    except (FileNotFoundError, TypeError, JointDiTError):
        return None


@dataclass(frozen=True)
class MeasuredRate:
    """How many samples the last runs of an output committed in the hours that their workers held devices."""

    runs: int
    samples: int
    device: Literal["GPU", "CPU"]
    hours: float  # devices times hours

    def hours_for(self, samples: int) -> float:
        """Return the device hours of so many samples."""
        return samples * self.hours / self.samples


def read_rate(storage: Storage) -> MeasuredRate | None:
    """Return the rate of the last runs, of those with GPUs if there are any; None where no run committed a sample."""
    reports = [read_report(storage, name) for name in report_names(storage)[-RATED_RUNS:]]
    done = [report for report in reports if report is not None and report.samples]
    if on_gpus := [report for report in done if report.gpu_hours > 0]:
        samples, hours = sum(report.samples for report in on_gpus), sum(report.gpu_hours for report in on_gpus)
        return MeasuredRate(len(on_gpus), samples, "GPU", hours)
    hours = sum(report.cpu_hours for report in done)
    return MeasuredRate(len(done), sum(report.samples for report in done), "CPU", hours) if hours > 0 else None


def cost_so_far(reports: Sequence[RunReport]) -> dict[str, float]:
    """Map each currency to the total cost of the runs. Runs without a cost are left out."""
    costs: dict[str, float] = {}
    for report in reports:
        if report.cost:
            costs[report.currency] = costs.get(report.currency, 0.0) + report.cost
    return costs
