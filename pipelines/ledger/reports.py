"""The report of a run as it is stored, and how it is read. run/report.py makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jointdit.errors import JointDiTError
from pipelines.ledger import names as ledger_names
from pipelines.ledger.entries import parse
from pipelines.store.storage import Storage

FOLDER = "_reports"


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
