"""The GPU check in its small mode: the same code on the CPU at the tiny checkpoint's size."""

from __future__ import annotations

import json

import pytest
import torch
import typer

from jobs.tools.gpu_cases import Clock, random_network, run_case
from jobs.tools.gpu_check import gpu_check, summary
from jointdit.pipeline import TINY_CHECKPOINT
from jointdit.profiling.memory import read_model

OPTIONS = {"small": True, "compiled": False, "budget": 3600.0, "estimate": False}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "report.json"
    gpu_check(path, device="cpu", size=[48], batch=[2, 1], **OPTIONS)
    return json.loads(path.read_text())


@pytest.mark.slow
def test_the_report_has_the_cases_of_the_options_with_their_rates(report):
    assert [(case["size"], case["batch"]) for case in report["cases"]] == [(48, 2), (48, 1)]
    for case in report["cases"]:
        assert case["pairs_per_second"] == pytest.approx(case["batch"] / case["steps_seconds"])
        assert case["tflops"] == pytest.approx(case["forward_flops"] / case["forward_seconds"] / 1e12)
        assert case["flop_use"] is None  # the peak of a CPU is not known
    assert report["cases"][0]["forward_flops"] == 2 * report["cases"][1]["forward_flops"]
    assert report["parity"]["passed"]
    assert torch.backends.cudnn.conv.fp32_precision == "tf32", "the check measures PyTorch's settings, as production"
    assert "parity with the CPU: passed" in summary(report)


def test_measured_memory_is_within_15_percent_of_the_estimate(report):
    assert [(memory["size"], memory["batch"]) for memory in report["memory"]] == [(48, 2), (48, 1)]
    for memory in report["memory"]:
        assert set(memory["measured"]) == {"denoise", "decode"}
        for stage, measured in memory["measured"].items():
            assert memory["estimated"][stage] == pytest.approx(measured, rel=0.15), (stage, memory)


def test_cases_beyond_the_time_limit_are_left_out_with_the_reason(report):
    architecture = read_model(TINY_CHECKPOINT).architecture
    network = random_network(architecture.network, torch.device("cpu"), torch.float32)
    late = run_case(network, architecture, 64, 1, 2, Clock(0.0), is_compiled=True)
    assert late == {"size": 64, "batch": 1, "compiled": True, "left_out": "no time is left"}
    assert "64 px, batch 1, compiled: left out, no time is left" in summary({**report, "cases": [late]})
    long = run_case(network, architecture, 32, 1, 10**9, Clock(60.0))
    assert "forward_seconds" in long
    assert "steps_seconds" not in long
    assert long["left_out"].startswith("1000000000 steps take longer than the")


def test_options_that_are_refused(tmp_path, monkeypatch):
    with pytest.raises(typer.BadParameter, match="--size is 500: give a multiple of 16"):
        gpu_check(tmp_path / "report.json", device="cpu", size=[500], **OPTIONS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match="finds no GPU: use --device cpu --small"):
        gpu_check(tmp_path / "report.json", device="cuda", **OPTIONS)
