"""Scrape configuration, alerts and dashboard use only metrics, labels and values that the engine exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from jobs.kuberay.network import PORTS, PROMETHEUS
from pipelines.engine.metrics import MEASURES, RETRY_KINDS, STAGES
from pipelines.ledger.entries import OUTCOMES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "monitoring"
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
BY_NAME = {measure.exported: measure for measure in MEASURES}
VALUES = {
    "outcome": set(OUTCOMES),
    "stage": set(STAGES),
    "kind": set(RETRY_KINDS),
    "state": {"up", "starting", "leaving", "waiting", "in_flight", "held", "busy"},
}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_uses_only_exported_metrics(where: str) -> None:
    expression = EXPRESSIONS[where]
    names = set(re.findall(r"\bray_\w+", expression))
    assert names
    assert names <= BY_NAME.keys()
    for name, selector in re.findall(r"\b(ray_\w+)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', selector):
            assert label in ("dataset", *BY_NAME[name].labels)
            assert value == "$dataset" or value in VALUES[label]
    grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}
    known = {"dataset"} | {label for name in names for label in BY_NAME[name].labels}
    assert grouped <= known
    assert expression.count("(") == expression.count(")")
    for name in names:
        counted = re.search(rf"(rate|increase)\({name}", expression) is not None
        assert counted <= (BY_NAME[name].kind == "counter"), f"{name} is a gauge"


def test_each_measure_is_shown() -> None:
    shown = " ".join(EXPRESSIONS.values())
    assert [name for name in BY_NAME if name not in shown] == []


def test_each_alert_has_a_summary_and_a_line_in_the_readme() -> None:
    text = (ROOT / "infra" / "README.md").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "{{ $labels.dataset }}" in rule["annotations"]["summary"]
        assert "by (dataset)" in rule["expr"], "the label is there"
        assert f"`{rule['alert']}`" in text


def test_each_alert_is_shown_to_fire_and_to_be_quiet() -> None:
    cases = yaml.safe_load((FOLDER / "alerts.test.yaml").read_text())["tests"]
    shown = {(each["alertname"], bool(each["exp_alerts"])) for case in cases for each in case["alert_rule_test"]}
    assert shown == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


def test_prometheus_reads_the_rules_and_their_tests_pass(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool: tests/install_tools.sh, or apt-get install prometheus")
    scraped = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    scraped["rule_files"] = [str(FOLDER / "alerts.yaml")]
    pods = scraped["scrape_configs"][0]
    del pods["kubernetes_sd_configs"]  # which Debian's Prometheus is built without
    pods["static_configs"] = [{"targets": ["127.0.0.1:1"]}]
    config = tmp_path / "prometheus.yaml"
    config.write_text(yaml.safe_dump(scraped))
    for words in (
        ["check", "config", config],
        ["check", "rules", FOLDER / "alerts.yaml"],
        ["test", "rules", FOLDER / "alerts.test.yaml"],
    ):
        ended = subprocess.run([promtool, *words], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_expression_of_the_dashboard_is_one_that_prometheus_parses(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool: tests/install_tools.sh, or apt-get install prometheus")
    variables = {"$__rate_interval": "1m", "$dataset": ".*"}
    expressions = [re.sub(r"\$\w+", lambda name: variables[name[0]], each) for each in EXPRESSIONS.values()]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    ended = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating"} <= DASHBOARD.keys()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies over another one"
        assert max(x for x, _ in cells) < 24
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval"} == variables
    (query,) = [v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    assert set(re.findall(r"ray_\w+", query)) <= BY_NAME.keys()


def test_the_jobs_pods_are_scraped_at_their_metrics_port() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert config["rule_files"] == ["alerts.yaml"]
    pods, local = config["scrape_configs"]
    kept = {rule["source_labels"][0]: rule["regex"] for rule in pods["relabel_configs"] if rule.get("action") == "keep"}
    assert kept == {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": "jointdit",
        "__meta_kubernetes_pod_container_port_name": "metrics",
    }
    manifest = (ROOT / "infra" / "kuberay" / "s3.yaml").read_text()
    assert "app.kubernetes.io/name: jointdit" in manifest
    assert "- name: metrics" in manifest
    assert local["static_configs"][0]["targets"] == [f"127.0.0.1:{PORTS['metrics']}"]
    assert PROMETHEUS["app.kubernetes.io/name"] in (FOLDER / "prometheus.yaml").read_text()
