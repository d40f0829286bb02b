"""Estimated output of 1,000 GPUs per day: `python -m jobs.tools.throughput --write`.

Writes infra/throughput.md. Measured (BENCH.json): rows/s of finish per core, bytes per row, CPU time of the driver per
shard. Counted: operations of FLUX.1-dev's real classes. Published or assumed, with the source: everything in
`Assumptions`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL
from transformers import T5EncoderModel

from jobs.tools.bench.frame import Line
from jobs.tools.bench.record import Result, read_results
from jointdit.errors import JointDiTError, SpecError
from jointdit.profiling.activations import Architecture
from jointdit.profiling.flops import forward_flops, operation_counter
from jointdit.profiling.memory import flux_model

TARGET = Path(__file__).parents[2] / "infra" / "throughput.md"
DAY = 86_400  # seconds
BENCH_SIDE = 512  # side of an image in the bench finish, in pixels
SIDES, STEPS = (512, 1024), (20, 8, 4)
PARAMETERS = 11.90e9 + 2.354e9  # FLUX.1-dev and the adapter
ONE_PUT, PART = 100 << 20, 50 << 20  # bytes: s3fs uploads larger objects in parts


@dataclass(frozen=True)
class Assumptions:
    """Figures that are not measured here."""

    gpus: int = 1000
    gpu_flops: float = 989e12  # dense bf16 of an H100 SXM, NVIDIA's data sheet
    gpu_bytes: float = 3.35e12  # bytes/s of its memory, NVIDIA's data sheet
    flop_use: float = 0.40  # share of the peak; an H100 reached 0.395 (jobs/tools/GPU.json: 512 px, batch 4)
    cores_per_gpu: int = 8  # for read and finish; AWS's p5.48xlarge has 12 cores (24 threads) per GPU
    network_per_gpu: float = 1.25e9  # bytes/s to the store: 10 Gbit/s, assumed
    shard_rows: int = 256  # the spec's default
    puts_per_second: int = 3500  # S3's published minimum for one prefix
    put_price: float = 0.005 / 1000  # US dollars per PUT, COPY, POST or LIST, S3 Standard in us-east-1
    get_price: float = 0.0004 / 1000
    month_price: tuple[tuple[float, float], ...] = ((50e3, 0.023), (450e3, 0.022), (math.inf, 0.021))  # GB, dollars/GB
    list_keys: int = 1000  # most names in the answer to a LIST


@dataclass(frozen=True)
class Measured:
    """Figures from the benches."""

    finish_rows: float  # rows/s per core, 512 x 512
    row_bytes: float  # 512 x 512
    driver_seconds: float | None  # CPU time per shard; None if the bench was not run
    source: str


@dataclass(frozen=True)
class Resource:
    """A resource beside the GPUs, and the share of it that their rows use."""

    name: str
    load: float  # share in use
    scope: Literal["each GPU", "the job"]  # one for each GPU, or one for the job


def read_measured(results: Mapping[str, Result]) -> Measured:
    """Return the figures of the benches. Raises SpecError if the bench finish has no result."""
    finish = results.get("finish")
    if finish is None or not finish.lines:
        raise SpecError("jobs/tools/BENCH.json has no result of the bench finish: run `jointdit bench finish --write`.")
    line = finish.lines[0]
    seconds = _driver_seconds(results["driver"].lines) if "driver" in results else None
    source = f"{finish.machine['cpu']}, commit {finish.commit}, {line.what}"
    return Measured(line.ours.median, line.work["bytes"] / line.work["rows"], seconds, source)


def _driver_seconds(lines: Sequence[Line]) -> float | None:
    """Return CPU seconds per shard from the first line in milliseconds."""
    return next((line.ours.median / 1000 for line in lines if line.unit.startswith("ms")), None)


@cache
def row_flops(side: int, steps: int) -> dict[str, float]:
    """Return the operations of FLUX.1-dev for one `joint` row of side x side pixels, by part."""
    flux, tokens = _architecture(), (side // 16) ** 2
    return {
        "network": steps * forward_flops(flux.network, 1, tokens, flux.text_tokens).total,
        "VAE": 2 * _vae_flops(side),
        "text": _text_flops(),
    }


@cache
def _architecture() -> Architecture:
    return flux_model().architecture


@cache
def _vae_flops(side: int) -> int:
    """Return the operations of FLUX's autoencoder for decoding one image, counted on meta tensors."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(_architecture().vae))
        with operation_counter() as counter, torch.no_grad():
            vae.decode(torch.empty(1, 16, side // 8, side // 8))
    return counter.get_total_flops()


@cache
def _text_flops() -> int:
    """Return the operations of T5-XXL's encoder for one prompt; CLIP adds less than 1%."""
    with torch.device("meta"):
        encoder = T5EncoderModel(_architecture().t5)
        with operation_counter() as counter, torch.no_grad():
            encoder(torch.zeros(1, _architecture().text_tokens, dtype=torch.long))
    return counter.get_total_flops()


@dataclass(frozen=True)
class Day:
    """The output of all GPUs in a day at one size and number of steps; every row is kept."""

    side: int
    steps: int
    seconds: float  # per row on one GPU
    rows: float
    shards: float
    bytes: float
    puts: float
    lists: float
    gets: float
    resources: tuple[Resource, ...]

    @property
    def bottleneck(self) -> Resource:
        """The resource beside the GPUs with the largest load."""
        return max(self.resources, key=lambda resource: resource.load)


def compute_day(side: int, steps: int, measured: Measured, assumed: Assumptions) -> Day:
    """Compute rows, bytes and requests of a day. Bytes and finish time of a row grow with the pixels."""
    pixels = (side / BENCH_SIDE) ** 2
    seconds = sum(row_flops(side, steps).values()) / (assumed.gpu_flops * assumed.flop_use)
    rate = assumed.gpus / seconds  # rows/s
    size = measured.row_bytes * pixels
    shard_bytes = size * assumed.shard_rows
    shard_rate = rate / assumed.shard_rows
    puts = (put_requests(shard_bytes) + 1) * shard_rate  # per second: table and commit
    cores = assumed.gpus * assumed.cores_per_gpu
    resources = [
        Resource("finish on CPU cores", rate * pixels / measured.finish_rows / cores, "each GPU"),
        Resource("network to the store", rate * size / (assumed.gpus * assumed.network_per_gpu), "each GPU"),
        Resource("writes to one prefix of the store", puts / assumed.puts_per_second, "the job"),
    ]
    if measured.driver_seconds is not None:
        resources.append(Resource("the driver's CPU", shard_rate * measured.driver_seconds, "the job"))
    shards = shard_rate * DAY
    return Day(
        side=side,
        steps=steps,
        seconds=seconds,
        rows=rate * DAY,
        shards=shards,
        bytes=rate * DAY * size,
        puts=puts * DAY,
        lists=2 * shards / assumed.list_keys,  # a run lists the commits at its start and before it publishes
        gets=shards,  # publish reads each commit once
        resources=tuple(resources),
    )


def put_requests(size: float) -> int:
    """Return the requests of s3fs for one object: one, or the parts of an upload plus its begin and end."""
    return 1 if size < ONE_PUT else 2 + math.ceil(size / PART)


def storage_price(size: float, assumed: Assumptions) -> float:
    """Return the price of storing bytes in dollars per month."""
    left, price = size / 1e9, 0.0
    for amount, dollars in assumed.month_price:
        price += min(left, amount) * dollars
        left = max(0.0, left - amount)
    return price


def document(measured: Measured, assumed: Assumptions) -> str:
    """Return infra/throughput.md."""
    days = [compute_day(side, steps, measured, assumed) for side in SIDES for steps in STEPS]
    return "\n".join([*_head(measured, assumed), *_production(days, assumed), *_saturation(days, assumed)]) + "\n"


def _head(measured: Measured, assumed: Assumptions) -> list[str]:
    flops = row_flops(512, 20)
    step = flops["network"] / 20
    weights = 2 * PARAMETERS / assumed.gpu_bytes
    driver = "an unmeasured amount" if measured.driver_seconds is None else f"{1000 * measured.driver_seconds:.2f} ms"
    return [
        f"# Estimated output of {assumed.gpus:,} GPUs\n",
        "Written by `python -m jobs.tools.throughput --write`. The figures are computed from measurements on the "
        "machine of the benches and on one H100, and from published figures; nothing was run on so many GPUs.\n",
        f"**Measured** ({measured.source}): one core scores, encodes and writes {measured.finish_rows:.2f} rows/s of "
        f"512 x 512, {measured.row_bytes / 1e3:,.0f} kB each; the driver takes {driver} of CPU time per shard. Figures "
        "for 1024 x 1024 are scaled by pixels.\n",
        f"**Counted**, FLUX.1-dev with the adapter, one `joint` row of 512 x 512, 20 steps: network "
        f"{flops['network'] / 1e12:,.0f} TFLOP ({step / 1e12:.1f} per step), both VAE decodings "
        f"{flops['VAE'] / 1e12:.1f}, a prompt {flops['text'] / 1e12:.1f}. So the text encoders take "
        f"{flops['text'] / sum(flops.values()):.2%} of a row's work; one prompt for all rows (depth) saves it.\n",
        f"**Published**: an H100 SXM has {assumed.gpu_flops / 1e12:,.0f} TFLOP/s in dense bf16 and "
        f"{assumed.gpu_bytes / 1e12:.2f} TB/s of memory (NVIDIA's data sheet); S3 Standard in us-east-1 costs "
        f"${assumed.put_price * 1000:.3f} per thousand PUT or LIST, ${assumed.get_price * 1000:.4f} per thousand GET, "
        f"${assumed.month_price[0][1]}, {assumed.month_price[1][1]}, {assumed.month_price[2][1]} per GB and month "
        f"(first 50 TB, next 450 TB, beyond), and accepts {assumed.puts_per_second:,} writes/s per prefix (AWS's "
        "documentation).\n",
        f"**Assumed**: {assumed.flop_use:.0%} of the peak is reached, as one H100 did with 512 x 512 and batches of 4, "
        f"not compiled (39.5%, [jobs/tools/GPU.json](../jobs/tools/GPU.json)); {assumed.cores_per_gpu} cores and "
        f"{assumed.network_per_gpu * 8 / 1e9:.0f} Gbit/s per GPU; shards of {assumed.shard_rows} rows, PNG, no point "
        "clouds; every row is kept. A step of one pair then takes "
        f"{1000 * step / assumed.gpu_flops / assumed.flop_use:.0f} ms, and reading all weights once "
        f"{1000 * weights:.0f} ms: compute is the limit, not memory bandwidth.\n",
    ]


def _production(days: Sequence[Day], assumed: Assumptions) -> list[str]:
    lines = [
        "## Per day\n",
        "| pixels | steps | s per row | rows | shards | TB | storage, $ per month | PUT | LIST | GET | requests, $ |",
        f"|{'---|' * 11}",
    ]
    for day in days:
        requests = (day.puts + day.lists) * assumed.put_price + day.gets * assumed.get_price
        lines.append(
            f"| {day.side} x {day.side} | {day.steps} | {day.seconds:.2f} | {day.rows / 1e6:.1f} M | "
            f"{day.shards:,.0f} | {day.bytes / 1e12:.1f} | {storage_price(day.bytes, assumed):,.0f} | "
            f"{day.puts:,.0f} | {day.lists:,.0f} | {day.gets:,.0f} | {requests:,.2f} |"
        )
    return [
        *lines,
        "\nA shard has two objects, its table and its commit. The commit takes one PUT; s3fs uploads a table of "
        f"{ONE_PUT >> 20} MiB or more in parts of {PART >> 20} MiB, with one request before and one after. A run lists "
        f"the commits at its start and before it publishes, {assumed.list_keys:,} names per request, and publish reads "
        "each commit once; leases, plans and the version take a few requests per minute. One PLY file per row would "
        f"add as many PUTs as rows, ${days[0].rows * assumed.put_price:,.0f} per day for the first line; point clouds "
        "in columns add none. GETs of the input come on top: one per image, or a few per table.\n",
    ]


def _saturation(days: Sequence[Day], assumed: Assumptions) -> list[str]:
    names = [resource.name for resource in days[0].resources]
    lines = [
        "## The first bottleneck\n",
        f"Share of each resource that {assumed.gpus:,} GPUs use; in brackets how many GPUs saturate a shared one.\n",
        f"| pixels | steps | {' | '.join(names)} | first |",
        f"|{'---|' * (3 + len(names))}",
    ]
    for day in days:
        shares = [_share(resource, assumed) for resource in day.resources]
        first = "GPUs" if day.bottleneck.load < 1 else day.bottleneck.name
        lines.append(f"| {day.side} x {day.side} | {day.steps} | {' | '.join(shares)} | {first} |")
    worst = max(days, key=lambda day: day.bottleneck.load)
    resource = worst.bottleneck
    where = f"with {worst.side} x {worst.side} and {worst.steps} steps"
    if resource.load < 1:
        text = f"The GPUs are the bottleneck at every size and number of steps here; the next one is {resource.name}, "
        text += f"at {resource.load:.0%} {where}."
    else:
        text = f"The GPUs are not always the bottleneck: {resource.name} would need {resource.load:.1f} times its "
        text += f"capacity {where}. The rows above assume GPUs without any other bottleneck."
    return [*lines, f"\n{text}"]


def _share(resource: Resource, assumed: Assumptions) -> str:
    if resource.scope == "each GPU":
        return f"{resource.load:.1%}"
    return f"{resource.load:.2%} ({assumed.gpus / resource.load:,.0f})"


def main(arguments: Sequence[str]) -> int:
    """Print the document, or write it to infra/throughput.md with --write."""
    try:
        text = document(read_measured(read_results()), Assumptions())
    except JointDiTError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if "--write" in arguments:
        TARGET.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
