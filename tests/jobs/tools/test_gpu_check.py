"""The script for GPUs in its small mode: the same code, at the tiny checkpoint's size, on the CPU."""

from __future__ import annotations

import json

import pytest
import torch
import typer

from jobs.tools.gpu_cases import Clock, random_network, run_case
from jobs.tools.gpu_check import BATCHES, SIZES, SMALL_SIZES, Plan, cases, gpu_check, summary
from jointdit.pipeline import TINY_CHECKPOINT
from jointdit.profiling.memory import read_model


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "report.json"
    gpu_check(path, device="cpu", small=True, compiled=False, budget=3600.0, estimate=False)
    return json.loads(path.read_text())


def test_the_report_has_every_case_with_its_rates(report):
    assert [(case["size"], case["batch"]) for case in report["cases"]] == [(32, 1), (32, 2), (64, 1), (64, 2)]
    for case in report["cases"]:
        assert case["pairs_per_second"] == pytest.approx(case["batch"] / case["steps_seconds"])
        assert case["tflops"] == pytest.approx(case["forward_flops"] / case["forward_seconds"] / 1e12)
        assert case["flop_use"] is None  # no data sheet names a CPU's peak
    assert report["cases"][1]["forward_flops"] == 2 * report["cases"][0]["forward_flops"]
    assert report["parity"]["passed"]
    assert "parity with the CPU: passed" in summary(report)


def test_measured_memory_is_within_15_percent_of_the_estimate(report):
    assert len(report["memory"]) == 4
    for found in report["memory"]:
        assert set(found["measured"]) == {"denoise", "decode"}
        for stage, measured in found["measured"].items():
            assert found["estimated"][stage] == pytest.approx(measured, rel=0.15), (stage, found)


def test_what_there_is_no_time_for_is_left_out_with_the_reason(report):
    architecture = read_model(TINY_CHECKPOINT).architecture
    network = random_network(architecture.network, torch.device("cpu"), torch.float32)
    late = cases(network, architecture, (32, 64), (1,), 2, Clock(0.0), is_compiled=True)
    assert late == [{"size": size, "batch": 1, "left_out": "no time is left", "compiled": True} for size in (32, 64)]
    assert "64 px, batch 1, compiled: left out, no time is left" in summary({**report, "cases": late})
    long = run_case(network, architecture, 32, 1, 10**9, Clock(60.0))
    assert "forward_seconds" in long
    assert "steps_seconds" not in long
    assert long["left_out"].startswith("1000000000 steps take longer than the")


def test_sizes_and_batches_are_those_asked_for(tmp_path):
    assert Plan.of() == Plan(False, SIZES, BATCHES)
    assert Plan.of(True, None, [3]) == Plan(True, SMALL_SIZES, (3,))
    path = tmp_path / "report.json"
    gpu_check(path, device="cpu", small=True, size=[48], batch=[3, 1], compiled=False, budget=3600.0, estimate=False)
    report = json.loads(path.read_text())
    for part in ("cases", "memory"):
        assert [(found["size"], found["batch"]) for found in report[part]] == [(48, 3), (48, 1)]
    with pytest.raises(typer.BadParameter, match="--size is 500: give a multiple of 16"):
        gpu_check(path, device="cpu", small=True, size=[500], compiled=False, budget=3600.0, estimate=False)


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(typer.BadParameter, match="sees no GPU here: use --device cpu --small"):
        gpu_check(tmp_path / "report.json", device="cuda", small=False, compiled=True, budget=1.0, estimate=False)
