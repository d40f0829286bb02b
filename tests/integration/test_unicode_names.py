"""Job names, folders, files and texts in any script: the whole way from the spec to every form of the dataset."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from jobs.cli import main
from pipelines.metrics import label_value
from pipelines.validate import validate

# umlauts, Chinese, an emoji of several code points, right-to-left with its mark, a combining accent
LETTERS = "größe 数据 👩‍🎨 \u202eשלום e\u0301"
TEXTS = [f"{LETTERS} {number}" for number in range(3)]
SECONDS = 20.0  # for Ray to export what it was told


def exported_datasets() -> set[str]:
    """The values of the label `dataset` at Ray's metrics port, with Prometheus's escapes resolved."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    return set(re.findall(r'ray_jointdit_samples_total\{.*dataset="([^"]*)"', text))


def assert_commands(capsys: pytest.CaptureFixture[str], output: str, target: Path) -> None:
    """Every command that reads an output says what it has to say of this one."""
    exports = ["export", output, "--webdataset", str(target / f"tars {LETTERS}"), "--hf", str(target / f"hf {LETTERS}")]
    for words in (
        ["status", output],
        ["versions", output],
        ["validate", output],
        ["gc", output, "--dry-run"],
        ["gallery", output, "-o", str(target / f"gallery {LETTERS}")],
        exports,
    ):
        assert main(words) == 0, capsys.readouterr().err
    capsys.readouterr()


@pytest.mark.parametrize("name", ["größe", "数据\n\t\x1b[31m", LETTERS, "\udcff", ""])
def test_a_job_of_any_name_runs_and_is_read(name: str, run_stand_in, make_spec, tmp_path, capsys) -> None:
    output = tmp_path / f"out {name}" / LETTERS
    spec = make_spec(TEXTS, name=name, output={"uri": str(output)})
    summary = run_stand_in(spec)
    assert summary.counts_now["kept"] == 3
    assert validate(spec.output.uri).problems == []
    assert_commands(capsys, spec.output.uri, tmp_path)
    until = time.monotonic() + SECONDS
    while label_value(spec.name) not in exported_datasets() and time.monotonic() < until:
        time.sleep(0.1)
    assert label_value(spec.name) in exported_datasets()
