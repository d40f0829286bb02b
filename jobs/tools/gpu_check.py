"""Measure a GPU in 8 minutes, without a download: `python -m jobs.tools.gpu_check`.

`-o gpu.json` names the report. A network of FLUX.1-dev's size gets random weights. The report has the seconds of a
forward and of 20 steps at 512 and 1024 pixels, for batches of 1 to 8, plain and compiled; FLOP use; memory beside the
estimate; and the difference between device and CPU on the tiny checkpoint. `--device cpu --small` runs the same code at
small size. `--estimate` prints only the table of estimated memory.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from jobs.report import say
from jobs.tools.bench.machine import machine
from jobs.tools.gpu_cases import PATCH, Clock, measure_memory, parity, random_network, random_vae, run_case
from jointdit.loading.offload import Offload
from jointdit.loading.quantization import Quantization
from jointdit.pipeline import TINY_CHECKPOINT
from jointdit.profiling.activations import Call, activation_bytes
from jointdit.profiling.memory import estimate_memory, flux_model, read_model

BUDGET = 450.0  # seconds
SIZES, BATCHES, STEPS = (512, 1024), (1, 2, 4, 8), 20
SMALL_SIZES, SMALL_BATCHES, SMALL_STEPS = (32, 64), (1, 2), 2
NF4 = Quantization("bitsandbytes_4bit")
COLUMNS: Mapping[str, tuple[Quantization | None, Offload | None, bool]] = {  # with VAE slicing or not
    "bf16": (None, None, False),
    "bf16, vae_slicing": (None, None, True),
    "nf4, vae_slicing": (NF4, None, True),
    "offload: model, vae_slicing": (None, "model", True),
    "offload: group, vae_slicing": (None, "group", True),
}


def gpu_check(
    output: Annotated[Path, typer.Option("-o", "--output", help="The JSON report to write.")] = Path("gpu_check.json"),
    device: Annotated[str, typer.Option(help="The device, such as cuda, cuda:1 or cpu.")] = "cuda",
    small: Annotated[
        bool, typer.Option("--small", help="Use the tiny checkpoint's size, to test this command.")
    ] = False,
    size: Annotated[
        list[int] | None, typer.Option(min=32, help="Side of the image in pixels; repeatable. Default: 512 and 1024.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size; repeatable. Default: 1, 2, 4 and 8.")
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Measure with compiled blocks too.")] = True,
    budget: Annotated[float, typer.Option(min=1, help="Time limit in seconds; cases beyond it are left out.")] = BUDGET,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print the table of estimated memory and exit.")] = False,
) -> None:
    """Measure throughput, FLOP use and memory of a random network of FLUX's size, and parity with the CPU."""
    if estimate:
        for line in estimate_table():
            say(line)
        return
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch finds no GPU: use --device cpu --small to test the command.")
    if unfit := [side for side in size or () if side % PATCH]:
        raise typer.BadParameter(f"--size is {unfit[0]}: give a multiple of {PATCH}.")
    all_sizes, all_batches = (SMALL_SIZES, SMALL_BATCHES) if small else (SIZES, BATCHES)
    pairs = list(itertools.product(size or all_sizes, batch or all_batches))
    report = check(torch.device(device), small, pairs, compiled, Clock(budget))
    output.write_text(json.dumps(report, indent=1) + "\n")
    for line in summary(report):
        say(line)
    say(output)


def check(
    device: torch.device, small: bool, pairs: Sequence[tuple[int, int]], compiled: bool, clock: Clock
) -> dict[str, Any]:
    """Return the report on (size, batch) pairs: parity, memory, plain and compiled cases, as far as time permits."""
    architecture = (read_model(TINY_CHECKPOINT) if small else flux_model()).architecture
    dtype, steps = (torch.float32, SMALL_STEPS) if small else (torch.bfloat16, STEPS)
    report: dict[str, Any] = {
        "machine": machine(),
        "device": device_of(device),
        "dtype": str(dtype).removeprefix("torch."),
        "parity": parity(device, steps),
    }
    with torch.no_grad():
        network, vae = random_network(architecture.network, device, dtype), random_vae(architecture.vae, device)
        report["parameters"] = sum(parameter.numel() for parameter in network.parameters())
        report["built_after_seconds"] = clock.spent
        report["memory"] = [
            measure_memory(network, vae, architecture, size, batch) for size, batch in pairs if clock.left > 0
        ]
        report["cases"] = [run_case(network, architecture, *pair, steps, clock) for pair in pairs]
        if compiled and clock.left > 0:
            network.compile_repeated_blocks()
            report["cases"] += [run_case(network, architecture, *pair, steps, clock, True) for pair in pairs]
    report["seconds"] = clock.spent
    return report


def device_of(device: torch.device) -> dict[str, Any]:
    """Return the name of a device, for a GPU also bytes and CUDA version."""
    if device.type != "cuda":
        return {"name": str(device)}
    properties = torch.cuda.get_device_properties(device)
    return {"name": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines of text."""
    lines = [f"{report['device']['name']}, {report['parameters'] / 1e9:.3f} billion parameters in {report['dtype']}"]
    for case in report["cases"]:
        what = f"{case['size']} px, batch {case['batch']}{', compiled' if case['compiled'] else ''}"
        if "pairs_per_second" in case:
            use = f", {case['flop_use']:.0%} of the peak" if case["flop_use"] else ""
            speed = f"{case['forward_seconds']:.3f} s a forward, {case['pairs_per_second']:.3f} pairs/s"
            lines.append(f"{what}: {speed}, {case['tflops']:.2f} TFLOP/s{use}")
        else:
            lines.append(f"{what}: left out, {case['left_out']}")
    for memory in report["memory"]:
        for stage, measured in memory["measured"].items():
            estimated = memory["estimated"][stage]
            error = f"{estimated / measured - 1:+.1%}"
            figures = f"{measured / 1e9:.3f} GB measured, {estimated / 1e9:.3f} GB estimated ({error})"
            lines.append(f"{memory['size']} px, batch {memory['batch']}, {stage}: {figures}")
    lines.append(f"parity with the CPU: {'passed' if report['parity']['passed'] else 'FAILED'}")
    return lines


def estimate_table() -> list[str]:
    """Return the Markdown table of GB that a worker with FLUX.1-dev needs for task joint."""
    model = flux_model()
    lines = [f"| pixels | batch | {' | '.join(COLUMNS)} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for size in SIZES:
        for batch in BATCHES:
            calls = {sliced: Call("joint", batch, size, size, vae_slicing=sliced) for sliced in (False, True)}
            activations = {sliced: activation_bytes(model.architecture, call) for sliced, call in calls.items()}
            needs = [
                estimate_memory(model, calls[sliced], quantization, offload, activations[sliced]).needed
                for quantization, offload, sliced in COLUMNS.values()
            ]
            lines.append(f"| {size} | {batch} | {' | '.join(f'{need / 1e9:.1f}' for need in needs)} |")
    return lines


if __name__ == "__main__":
    typer.run(gpu_check)
