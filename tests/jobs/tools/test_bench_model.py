"""The model's benches: each runs whole at small size, and refuses sides that compute different things."""

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
    """Networks of width 64, two settings of steps, and the number of threads as it was."""
    threads = torch.get_num_threads()
    for name, value in SMALL.items():
        monkeypatch.setitem(networks.CONFIG, name, value)
    monkeypatch.setattr(networks, "LORA_RANK", 8)
    monkeypatch.setattr(steps, "REFERENCE", steps.Sampling(3))
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["forward", "attention", "lora", "train-step", "text", "steps"])
def test_a_bench_runs_and_its_figures_are_of_counted_work(name: str, tmp_path: Path) -> None:
    bench = BENCHES[name]
    lines = list(
        importlib.import_module(f"jobs.tools.bench.{bench.module}").measure(Settings(tmp_path, 1.0, quick=True))
    )
    assert lines
    for line in lines:
        assert line.ours.median > 0 or name == "steps"
        assert line.figure.median > 0 or math.isnan(line.figure.median)
        assert line.work or math.isnan(line.figure.median)
        assert json.dumps(line.work), "it can be written down"


def test_operations_are_those_of_the_network_that_is_measured(tmp_path: Path) -> None:
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


def test_networks_that_compute_other_things_are_not_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from jobs.tools.bench import forward

    ours, flux = networks.networks()
    with torch.no_grad():
        flux.proj_out.bias.add_(0.01)
    monkeypatch.setattr(forward, "networks", lambda: (ours, flux))
    with pytest.raises(PermanentError, match=r"the velocity of the two sides differs by 0\.01"):
        list(forward.measure(Settings(tmp_path, 1.0, quick=True)))


def test_as_many_parameters_are_trained_on_both_sides() -> None:
    ours, flux = networks.networks()
    wanted = sum(parameter.numel() for parameter in ours.adapter_parameters())
    trained = train_as_many(flux, wanted)
    assert trained == sum(parameter.numel() for parameter in flux.parameters() if parameter.requires_grad)
    assert trained == pytest.approx(wanted, rel=0.03)
    with pytest.raises(PermanentError, match="choose other Linears"):
        train_as_many(flux, 100)


def test_peak_memory_is_of_what_either_way_makes_beside_its_input() -> None:
    given = torch.zeros(1000)

    def ours() -> torch.Tensor:
        b = (given.view(10, 100) + 1).add_(1)
        several = [given[:] * 2 for _ in range(5)]
        del several
        return b + given.view(10, 100)

    line = peak_line("memory", ours, lambda: given * 2 * 3, [given])
    assert line.ours.median == pytest.approx(6 * 4000 / 1e6), (
        "b and five more; views and a sum in place are nothing new"
    )
    assert line.theirs is not None
    assert line.theirs.median == pytest.approx(2 * 4000 / 1e6)
