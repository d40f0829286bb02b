"""Metrics of a job over HTTP from a real Ray, compared with the ledger."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections import Counter

import pytest
import ray

from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.engine.metrics import MEASURES, RETRIES, RETRY_KINDS, SAMPLES, SHARDS, STAGE_SECONDS, WRITTEN
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.reports import read_report, report_names
from pipelines.store.storage import Storage

SECONDS = 45.0  # deadline for Ray to export all metrics
ALL = {measure.exported for measure in MEASURES}
SAMPLE = re.compile(r"^(ray_jointdit_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def scraped(dataset: str) -> dict[tuple[str, str], float]:
    """Return (name, value of the measure's own label or "") -> value, summed over processes."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    own_labels = {measure.exported: measure.labels for measure in MEASURES}
    values: Counter[tuple[str, str]] = Counter()
    for name, labels, value in SAMPLE.findall(text):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if pairs.get("dataset") == dataset and name in own_labels:
            values[name, pairs[own_labels[name][0]] if own_labels[name] else ""] += float(value)
    return dict(values)


def collect_names(seen: set[str], done: threading.Event) -> None:
    """Collect the names of scraped metrics until `done` is set."""
    while not done.is_set():
        seen |= {name for name, _ in scraped("measured")}
        done.wait(0.2)


def test_metrics_logs_and_report_agree_with_the_ledger(run_stand_in, make_spec, caplog) -> None:
    caplog.set_level("INFO", logger="pipelines.shards")
    prompts = ["fine", "FLAT", "", "fine", "NAN", "FLAT", "fine", "fine", "fine"]
    price = {"cpu_hour": 3600.0, "currency": "EUR"}
    labels = {"ray.io/node-id": ray.nodes()[0]["NodeID"]}  # tasks run on nodes with these labels
    quality, resources = {"filters": [{"kind": "depth_range"}]}, {"task_labels": labels}
    spec = make_spec(prompts, name="measured", quality=quality, price=price, resources=resources)
    seen, done = set(), threading.Event()
    collector = threading.Thread(target=collect_names, args=(seen, done))
    collector.start()
    try:
        summary = run_stand_in(spec)
    finally:
        until = time.monotonic() + 10
        while not seen >= ALL and time.monotonic() < until:  # the last values appear with the next report
            collector.join(0.05)
        done.set()
        collector.join()
    ledger = Ledger(Storage(spec.output.uri))
    commits = ledger.read_commits(ledger.committed())
    counts = Counter(sample.outcome for commit in commits.values() for sample in commit.samples)
    assert counts == {"kept": 5, "rejected": 2, "quarantined": 2}
    expected = {(SAMPLES.exported, outcome): float(count) for outcome, count in counts.items()}
    expected |= {(RETRIES.exported, kind): 0.0 for kind in RETRY_KINDS}  # there is no retry, so these are 0
    expected[SHARDS.exported, ""] = float(len(commits))
    expected[WRITTEN.exported, ""] = float(sum(o.bytes for commit in commits.values() for o in commit.objects))
    until, values = time.monotonic() + SECONDS, scraped("measured")
    while not expected.items() <= values.items() and time.monotonic() < until:
        time.sleep(0.2)
        values = scraped("measured")
    assert expected.items() <= values.items()
    assert seen == ALL, "all gauges are exported while a driver runs"
    stages = {label: value for (name, label), value in values.items() if name == STAGE_SECONDS.exported}
    assert stages.keys() == {"read", "generate", "finish"}
    assert all(seconds > 0 for seconds in stages.values())
    logged = {record.shard: (record.attempt, record.outcomes) for record in caplog.records if hasattr(record, "shard")}
    assert logged == {shard: (commit.token, commit.counts) for shard, commit in commits.items()}
    (report,) = (read_report(ledger.storage, name) for name in report_names(ledger.storage))
    assert summary.report == ledger.storage.uri_of(report_names(ledger.storage)[0].replace(".json", ".md"))
    assert (report.rows, report.counts, report.rejected_by) == (9, dict(counts), {"depth_range": 2})
    assert (report.version, report.stopped, report.bytes) == (1, "", expected[WRITTEN.exported, ""])
    assert report.cpu_hours > 0
    assert report.cost == pytest.approx(3600.0 * report.cpu_hours)
    assert read_status(spec.output.uri).costs == {"EUR": report.cost}
    assert "| cost | " in ledger.storage.read_bytes(report_names(ledger.storage)[0].replace(".json", ".md")).decode()
    assert validate(spec.output.uri).problems == []
