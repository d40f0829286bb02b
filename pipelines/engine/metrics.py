"""The metrics that a run exports to Prometheus through Ray.

Each metric is defined here, and nowhere else.

Ray exports them on every node, at the port that `ray start --metrics-export-port` names, with the prefix `ray_`, and
with the suffix `_total` for counters. Only the driver sets them, from the results of tasks and workers: a task that was
lost, or ran twice, is not counted, so the counts are those of the ledger.

A driver exports every series from its start, counters as 0. Prometheus takes the first value of a series as its
beginning, so a series that appeared with its first event would hide that event from `increase`, and an alert that
compares with an absent series would never fire. Each driver has series of its own (Ray's label `WorkerId`). When a
driver ends, its gauges vanish within seconds, and its counters stay until the node's Ray ends.

`infra/monitoring/` uses these names, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

from pipelines.engine.faults import Kind
from pipelines.ledger.entries import OUTCOMES

if TYPE_CHECKING:
    from pipelines.engine.progress import Progress
    from pipelines.engine.usage import Usage
    from pipelines.spec.running import PriceSpec

STAGES = ("read", "generate", "finish")
RETRY_KINDS = (*get_args(Kind), "straggler")
VISIBLE_ASCII = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


@dataclass(frozen=True)
class Measure:
    """One metric. All have the label `dataset`, the job's name (see `label_value`); `labels` are the other ones."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


SAMPLES = Measure("jointdit_samples", "counter", "Committed samples.", ("outcome",))
SHARDS = Measure("jointdit_shards", "counter", "Committed shards.")
WRITTEN = Measure("jointdit_written_bytes", "counter", "Bytes of tables and point clouds of committed shards.")
STAGE_SECONDS = Measure(
    "jointdit_stage_seconds", "counter", "Seconds of committed shards: read, generate, finish.", ("stage",)
)
WORKER_SECONDS = Measure(
    "jointdit_worker_seconds", "counter", "Seconds that workers held their GPU, and were busy.", ("state",)
)
RETRIES = Measure("jointdit_retries", "counter", "Shards, or steps of them, that went again.", ("kind",))
WORKERS = Measure("jointdit_workers", "gauge", "Workers: up, starting, leaving.", ("state",))
QUEUE = Measure("jointdit_queue_shards", "gauge", "Shards: waiting for a worker, in flight.", ("state",))
PLANNED = Measure("jointdit_planned_samples", "gauge", "Samples that this run is to make.")
BUSY = Measure("jointdit_busy_share", "gauge", "Share of the time so far that workers were busy, 0 to 1.")
COST = Measure("jointdit_cost", "gauge", "Cost of this run so far, by the price in its spec.")
MEASURES = (SAMPLES, SHARDS, WRITTEN, STAGE_SECONDS, WORKER_SECONDS, RETRIES, WORKERS, QUEUE, PLANNED, BUSY, COST)

Values = Mapping[tuple[Measure, str], float]  # (measure, value of its label or "") -> total since the start


def values_of(
    progress: Progress, usage: Usage, price: PriceSpec, workers: Mapping[str, int], shards: Mapping[str, int]
) -> Values:
    """The values of all metrics; `workers` and `shards` are counts by state. Every label value is always present."""
    values: dict[tuple[Measure, str], float] = {
        **{(SAMPLES, outcome): progress.counts[outcome] for outcome in OUTCOMES},
        (SHARDS, ""): progress.shards,
        (WRITTEN, ""): progress.bytes,
        **{(STAGE_SECONDS, stage): progress.seconds_of[stage] for stage in STAGES},
        (WORKER_SECONDS, "held"): usage.held_seconds,
        (WORKER_SECONDS, "busy"): usage.busy_seconds,
        **{(RETRIES, kind): progress.retries[kind] for kind in RETRY_KINDS},
        **{(WORKERS, state): workers.get(state, 0) for state in ("up", "starting", "leaving")},
        **{(QUEUE, state): shards.get(state, 0) for state in ("waiting", "in_flight")},
        (PLANNED, ""): progress.planned,
        (BUSY, ""): usage.busy_share,
        (COST, ""): usage.cost(price),
    }
    return {key: float(value) for key, value in values.items()}


def label_value(text: str) -> str:
    """A text as a label value. Ray takes ASCII only, so other characters and % are percent-encoded as UTF-8."""
    return quote(text, safe=VISIBLE_ASCII, errors="surrogatepass")


class Metrics:
    """Exports the state of a run through Ray, which must be connected."""

    def __init__(self, dataset: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._dataset = label_value(dataset)
        kinds = {"counter": Counter, "gauge": Gauge}
        self._metrics: dict[Measure, Any] = {
            m: kinds[m.kind](m.name, m.description, ("dataset", *m.labels)) for m in MEASURES
        }
        self._exported: dict[tuple[Measure, str], float] = {}

    def export(self, values: Values) -> None:
        """Export the totals. Counters are increased by the difference to the last call, and by 0 the first time."""
        for (measure, label), value in values.items():
            tags = {"dataset": self._dataset, **dict(zip(measure.labels, (label,), strict=False))}
            if measure.kind == "gauge":
                self._metrics[measure].set(value, tags)
                continue
            before = self._exported.get((measure, label))
            if before is None or value > before:
                # `inc` refuses 0, and then a counter would not exist before its first event.
                self._metrics[measure]._record(value - (before or 0.0), tags)
                self._exported[measure, label] = value
