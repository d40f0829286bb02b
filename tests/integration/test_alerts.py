"""Alerts of a real Prometheus that scrapes jobs, with windows of seconds in place of hours."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import yaml

from pipelines.engine.metrics import label_value
from pipelines.ledger.ledger import Ledger
from pipelines.store.storage import Storage
from tests.integration.driver_process import kill, start_driver, wait_until
from tests.stand_in import open_gate

RULES = Path(__file__).parents[2] / "infra" / "monitoring" / "alerts.yaml"
SHORTER = {"[3h:5s]": "[30m:1s]", "15m": "6s", "for: 1h": "for: 4s"}
QUEUE = "sum by (dataset) (ray_jointdit_queue_shards)"
LAST_QUEUE = f"last_over_time({QUEUE}[30m:1s])"  # the expression of the alert


class Prometheus:
    """Queries to a running server."""

    def __init__(self, address: str) -> None:
        self.address = address

    def _get(self, path: str, **query: str) -> dict:
        url = f"{self.address}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def is_ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.address}/-/ready", timeout=10).status == 200
        except urllib.error.URLError:
            return False

    def queue(self, dataset: str, query: str = QUEUE) -> float | None:
        """Return the pending and in-flight shards of a dataset by its live drivers."""
        series = self._get("/api/v1/query", query=query)["result"]
        values = {point["metric"]["dataset"]: float(point["value"][1]) for point in series}
        return values.get(label_value(dataset))

    def fires(self, dataset: str) -> bool:
        alerts = self._get("/api/v1/alerts")["alerts"]
        return any(
            alert["labels"]["alertname"] == "JointDiTStandsStill" and alert["state"] == "firing"
            for alert in alerts
            if alert["labels"]["dataset"] == label_value(dataset)
        )


@pytest.fixture
def prometheus(ray_cluster: None, tmp_path: Path) -> Iterator[Prometheus]:
    """A server that scrapes the session's Ray each second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: run tests/install_tools.sh or apt-get install prometheus")
    rules = RULES.read_text()
    for window, shorter in SHORTER.items():
        assert window in rules
        rules = rules.replace(window, shorter)
    (tmp_path / "alerts.yaml").write_text(rules)
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    target = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "jointdit", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--config.file=prometheus.yaml", "--storage.tsdb.path=tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    log = (tmp_path / "prometheus.log").open("wb")
    process = subprocess.Popen([program, *options], cwd=tmp_path, stdout=log, stderr=log)
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        eventually(server.is_ready, 60)
        yield server
    finally:
        process.terminate()
        process.wait()
        log.close()


def eventually(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stalled_job_and_a_job_with_a_killed_driver_fire_the_alert(prometheus, make_spec, tmp_path: Path) -> None:
    still, killed = "größe", "数据"
    prompts = [f"prompt {number}" for number in range(12)]
    with contextlib.ExitStack() as drivers:
        spec = make_spec(prompts, name=still, output={"uri": str(tmp_path / still), "shard_rows": 2})
        open_gate(spec, 0)
        driver = start_driver(spec, tmp_path, "GatedWorker")
        drivers.callback(kill, driver)
        wait_until(lambda: prometheus.fires(still), driver, tmp_path, 120)  # before the first commit
        assert Ledger(Storage(spec.output.uri)).committed() == set()
        open_gate(spec, 100)
        eventually(lambda: driver.poll() is not None, 120)
        assert driver.returncode == 0, (tmp_path / "driver.log").read_text()[-3000:]
        eventually(lambda: prometheus.queue(still) is None, 60)  # its gauges disappear
        assert prometheus.queue(still, LAST_QUEUE) == 0, "so the alert does not fire later"
        eventually(lambda: not prometheus.fires(still), 60)

        spec = make_spec(prompts, name=killed, output={"uri": str(tmp_path / killed), "shard_rows": 2})
        open_gate(spec, 5)
        driver = start_driver(spec, tmp_path, "GatedWorker")
        drivers.callback(kill, driver)
        ledger = Ledger(Storage(spec.output.uri))
        wait_until(lambda: bool(ledger.committed() and prometheus.queue(killed)), driver, tmp_path, 120)
        kill(driver)
        eventually(lambda: prometheus.queue(killed) is None, 60)
        eventually(lambda: prometheus.fires(killed), 60)
        assert not prometheus.fires(still), "the other job ended normally"

        open_gate(spec, 100)
        driver = start_driver(spec, tmp_path, "GatedWorker")
        drivers.callback(kill, driver)
        eventually(lambda: driver.poll() is not None, 120)
        eventually(lambda: prometheus.queue(killed) is None, 60)
        assert prometheus.queue(killed, LAST_QUEUE) == 0, "the next driver ended normally"
        eventually(lambda: not prometheus.fires(killed), 60)
