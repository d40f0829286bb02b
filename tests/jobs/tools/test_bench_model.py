"""The model's benches: each runs at small size, and unequal sides are an error."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.tools.bench import BENCHES, networks, steps
from jobs.tools.bench.attention import peak_line
from jobs.tools.bench.frame import Settings
from jobs.tools.bench.train_step import train_as_many
from jointdit.errors import PermanentError

SMALL = {
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "joint_attention_dim": 48,
    "pooled_projection_dim": 32,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks of width 64, a reference of three steps, and the number of threads restored afterwards."""
    threads = torch.get_num_threads()
    for name, value in SMALL.items():
        monkeypatch.setitem(networks.CONFIG, name, value)
    monkeypatch.setattr(networks, "LORA_RANK", 8)
    monkeypatch.setattr(steps, "REFERENCE", steps.Sampling(3))
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["attention", "lora", "train-step", "text", "steps"])
def test_a_bench_runs(name: str, tmp_path: Path) -> None:
    bench = BENCHES[name]
    measure = getattr(importlib.import_module(f"jobs.tools.bench.{bench.module}"), bench.function)
    lines = list(measure(Settings(tmp_path, 1.0, quick=True)))
    assert lines
    for line in lines:
        assert line.ours.median > 0 or name == "steps"
        assert line.figure.median > 0 or math.isnan(line.figure.median)
        assert line.work or math.isnan(line.figure.median)
        assert json.dumps(line.work)


def test_operations_are_those_of_the_measured_networks(tmp_path: Path) -> None:
    from jobs.tools.bench.forward import measure
    from jointdit.profiling.flops import operation_counter

    (line,) = measure(Settings(tmp_path, 1.0, quick=True))
    ours, flux = networks.networks()
    counts = []
    for model in (ours, flux):
        with torch.device("meta"), operation_counter() as counter, torch.no_grad():
            model.to("meta")(**{name: x.to("meta") for name, x in networks.inputs(2, 256).items()})
        counts.append(counter.get_total_flops())
    assert f"so {counts[0] / counts[1]:.3f} times" in line.notes[0]
    ratio = float(line.notes[1].split()[1])
    assert line.figure.median == pytest.approx(ratio * counts[1] / counts[0], rel=1e-2)


def test_networks_with_different_outputs_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from jobs.tools.bench import forward

    ours, flux = networks.networks()
    with torch.no_grad():
        flux.proj_out.bias.add_(0.01)
    monkeypatch.setattr(forward, "networks", lambda: (ours, flux))
    with pytest.raises(PermanentError, match=r"the velocity of the two sides differs by 0\.01"):
        list(forward.measure(Settings(tmp_path, 1.0, quick=True)))


def test_both_sides_train_as_many_parameters() -> None:
    ours, flux = networks.networks()
    parameters = sum(parameter.numel() for parameter in ours.adapter_parameters())
    trained = train_as_many(flux, parameters)
    assert trained == sum(parameter.numel() for parameter in flux.parameters() if parameter.requires_grad)
    assert trained == pytest.approx(parameters, rel=0.03)
    with pytest.raises(PermanentError, match="choose other Linears"):
        train_as_many(flux, 100)


def test_peak_memory_counts_new_tensors_only() -> None:
    held = torch.zeros(1000)

    def ours() -> torch.Tensor:
        b = (held.view(10, 100) + 1).add_(1)
        several = [held[:] * 2 for _ in range(5)]
        del several
        return b + held.view(10, 100)

    line = peak_line("memory", ours, lambda: held * 2 * 3, [held])
    assert line.ours.median == pytest.approx(6 * 4000 / 1e6), "b and five more; views and sums in place take no memory"
    assert line.theirs is not None
    assert line.theirs.median == pytest.approx(2 * 4000 / 1e6)
