"""What Prometheus would scrape while a job runs: over HTTP, from a real Ray, and equal to what the ledger holds."""

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

SECONDS = 45.0  # Ray's processes tell theirs every ten seconds
ALL = {each.exported for each in MEASURES}
SAMPLE = re.compile(r"^(ray_jointdit_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def scraped(dataset: str) -> dict[tuple[str, str], float]:
    """(name, value of the measure's own label or "") -> value, summed over processes."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    own = {measure.exported: measure.labels for measure in MEASURES}
    found: Counter[tuple[str, str]] = Counter()
    for name, labels, value in SAMPLE.findall(text):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if pairs.get("dataset") == dataset and name in own:
            found[name, pairs[own[name][0]] if own[name] else ""] += float(value)
    return dict(found)


def collect_series(seen: set[str], done: threading.Event) -> None:
    """Note the names that can be scraped, until it is enough."""
    while not done.is_set():
        seen |= {name for name, _ in scraped("measured")}
        done.wait(0.2)


def test_what_is_scraped_and_logged_and_reported_is_what_the_ledger_holds(run_stand_in, make_spec, caplog) -> None:
    caplog.set_level("INFO", logger="pipelines.shards")
    prompts = ["fine", "FLAT", "", "fine", "NAN", "FLAT", "fine", "fine", "fine"]
    price = {"cpu_hour": 3600.0, "currency": "EUR"}
    labels = {"ray.io/node-id": ray.nodes()[0]["NodeID"]}  # tasks are where they are told to be
    quality, resources = {"filters": [{"kind": "depth_range"}]}, {"task_labels": labels}
    spec = make_spec(prompts, name="measured", quality=quality, price=price, resources=resources)
    seen, done = set(), threading.Event()
    looking = threading.Thread(target=collect_series, args=(seen, done))
    looking.start()
    try:
        summary = run_stand_in(spec)
    finally:
        until = time.monotonic() + 10
        while not seen >= ALL and time.monotonic() < until:  # what was told last takes a report to come out
            looking.join(0.05)
        done.set()
        looking.join()
    ledger = Ledger(Storage(spec.output.uri))
    commits = ledger.read_commits(ledger.committed())
    counts = Counter(sample.outcome for commit in commits.values() for sample in commit.samples)
    assert counts == {"kept": 5, "rejected": 2, "quarantined": 2}
    wanted = {(SAMPLES.exported, outcome): float(count) for outcome, count in counts.items()}
    wanted |= {(RETRIES.exported, kind): 0.0 for kind in RETRY_KINDS}  # nothing goes again here, and 0 says so
    wanted[SHARDS.exported, ""] = float(len(commits))
    wanted[WRITTEN.exported, ""] = float(sum(o.bytes for commit in commits.values() for o in commit.objects))
    until, found = time.monotonic() + SECONDS, scraped("measured")
    while not wanted.items() <= found.items() and time.monotonic() < until:
        time.sleep(0.2)
        found = scraped("measured")
    assert wanted.items() <= found.items()
    assert seen == ALL, "gauges are there while a driver sets them"
    stages = {label: value for (name, label), value in found.items() if name == STAGE_SECONDS.exported}
    assert stages.keys() == {"read", "generate", "finish"}
    assert all(seconds > 0 for seconds in stages.values())
    logged = {record.shard: (record.attempt, record.outcomes) for record in caplog.records if hasattr(record, "shard")}
    assert logged == {shard: (commit.token, commit.counts) for shard, commit in commits.items()}
    (report,) = (read_report(ledger.storage, name) for name in report_names(ledger.storage))
    assert summary.report == ledger.storage.uri_of(report_names(ledger.storage)[0].replace(".json", ".md"))
    assert (report.rows, report.counts, report.rejected_by) == (9, dict(counts), {"depth_range": 2})
    assert (report.version, report.stopped, report.bytes) == (1, "", wanted[WRITTEN.exported, ""])
    assert report.cpu_hours > 0
    assert report.cost == pytest.approx(3600.0 * report.cpu_hours)
    assert read_status(spec.output.uri).costs == {"EUR": report.cost}
    assert "| cost | " in ledger.storage.read_bytes(report_names(ledger.storage)[0].replace(".json", ".md")).decode()
    assert validate(spec.output.uri).problems == []
