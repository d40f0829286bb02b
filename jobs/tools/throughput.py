"""What a thousand GPUs would produce in a day: `python -m jobs.tools.throughput --write` renews infra/throughput.md.

Measured: rows/s that a core finishes, bytes a row, the driver's CPU time a shard, from BENCH.json. Counted: the
operations of FLUX.1-dev's real classes. Stated or assumed, with the source: everything in `Assumptions`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jobs.tools.bench.frame import Line
from jobs.tools.bench.record import Result, read_results
from jointdit.errors import JointDiTError, SpecError
from jointdit.profiling.flops import forward_flops

TARGET = Path(__file__).parents[2] / "infra" / "throughput.md"
DAY = 86_400  # seconds
BENCH_SIDE = 512  # pixels of the rows that the bench of finish writes
SIDES, STEPS = (512, 1024), (20, 8, 4)
TEXT_TOKENS = 512
PARAMETERS = 11.90e9 + 2.354e9  # FLUX.1-dev and the adapter
ONE_PUT, PART = 100 << 20, 50 << 20  # bytes: s3fs writes what is larger in parts


@dataclass(frozen=True)
class Assumptions:
    """What was not measured here."""

    gpus: int = 1000
    gpu_flops: float = 989e12  # dense bf16 of an H100 SXM, NVIDIA's data sheet
    gpu_bytes: float = 3.35e12  # bytes/s of its memory, NVIDIA's data sheet
    flop_use: float = 0.40  # of the peak that is reached; an H100 reached 0.395 (jobs/tools/GPU.json: 512 px, batch 4)
    cores_a_gpu: int = 8  # beside each GPU, for read and finish; AWS's p5.48xlarge has 12 cores (24 threads) a GPU
    network_a_gpu: float = 1.25e9  # bytes/s to the store: 10 Gbit/s, assumed
    shard_rows: int = 256  # the spec's default
    puts_a_second: int = 3500  # S3's published floor for one prefix
    put_price: float = 0.005 / 1000  # US dollars a PUT, COPY, POST or LIST, S3 Standard in us-east-1
    get_price: float = 0.0004 / 1000
    month_price: tuple[tuple[float, float], ...] = ((50e3, 0.023), (450e3, 0.022), (math.inf, 0.021))  # GB, dollars/GB
    list_keys: int = 1000  # names a LIST answers with at most


@dataclass(frozen=True)
class Measured:
    """From the benches of this machine."""

    finish_rows: float  # a second and core, 512 x 512
    row_bytes: float  # 512 x 512
    driver_seconds: float | None  # of CPU a shard; None where the bench was not run
    source: str


@dataclass(frozen=True)
class Part:
    """Something that may run full: how much of it the GPUs' rows take, and at how many GPUs it is full."""

    name: str
    load: float  # share of what there is
    there: Literal["each GPU", "the job"]  # beside each GPU, or once


def measured(results: Mapping[str, Result]) -> Measured:
    """Raises SpecError where the bench of finish has no result yet."""
    finish = results.get("finish")
    if finish is None or not finish.lines:
        raise SpecError("jobs/tools/BENCH.json has no result of the bench finish: run `jointdit bench finish --write`.")
    line = finish.lines[0]
    seconds = _driver_seconds(results["driver"].lines) if "driver" in results else None
    source = f"{finish.machine['cpu']}, commit {finish.commit}, {line.what}"
    return Measured(line.ours.median, line.work["bytes"] / line.work["rows"], seconds, source)


def _driver_seconds(lines: Sequence[Line]) -> float | None:
    """CPU seconds a shard, of the first line that is in milliseconds a shard."""
    return next((line.ours.median / 1000 for line in lines if line.unit.startswith("ms")), None)


@cache
def row_flops(side: int, steps: int) -> dict[str, float]:
    """Operations of one `joint` row of side x side pixels by FLUX.1-dev, part by part."""
    tokens = (side // 16) ** 2
    return {
        "network": steps * forward_flops(_flux_config(), 1, tokens, TEXT_TOKENS).total,
        "VAE": 2 * _vae_flops(side),
        "text": _text_flops(),
    }


def _flux_config() -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel
    from torch import device

    with device("meta"):
        return dict(FluxTransformer2DModel(guidance_embeds=True, num_layers=1, num_single_layers=1).config) | {
            "num_layers": 19,
            "num_single_layers": 38,
        }


@cache
def _vae_flops(side: int) -> float:
    """One image decoded by FLUX's autoencoder, counted on tensors without memory."""
    import torch
    from diffusers import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.decode(torch.empty(1, 16, side // 8, side // 8))
    return float(counter.get_total_flops())


@cache
def _text_flops() -> float:
    """One prompt of 512 tokens by T5-XXL's encoder; CLIP is below a hundredth of it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=32128
    )
    with torch.device("meta"):
        encoder = T5EncoderModel(config)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(torch.zeros(1, TEXT_TOKENS, dtype=torch.long))
    return float(counter.get_total_flops())


@dataclass(frozen=True)
class Day:
    """A day of all GPUs at one size and number of steps; every row is kept."""

    side: int
    steps: int
    seconds: float  # a row and GPU
    rows: float
    shards: float
    bytes: float
    puts: float
    lists: float
    gets: float
    parts: tuple[Part, ...]

    @property
    def first_full(self) -> Part:
        """What runs full first beside the GPUs."""
        return max(self.parts, key=lambda part: part.load)


def day(side: int, steps: int, found: Measured, given: Assumptions) -> Day:
    """Rows, bytes and requests. Bytes a row and the finishing of a row grow with the pixels."""
    pixels = (side / BENCH_SIDE) ** 2
    seconds = sum(row_flops(side, steps).values()) / (given.gpu_flops * given.flop_use)
    rate = given.gpus / seconds  # rows/s
    size = found.row_bytes * pixels
    shard_bytes = size * given.shard_rows
    shard_rate = rate / given.shard_rows
    puts = (put_requests(shard_bytes) + 1) * shard_rate  # a second: the table, and the commit
    parts = [
        Part(
            "finishing on CPU cores", rate * pixels / found.finish_rows / (given.gpus * given.cores_a_gpu), "each GPU"
        ),
        Part("network to the store", rate * size / (given.gpus * given.network_a_gpu), "each GPU"),
        Part("writes to one prefix of the store", puts / given.puts_a_second, "the job"),
    ]
    if found.driver_seconds is not None:
        parts.append(Part("the driver's CPU", shard_rate * found.driver_seconds, "the job"))
    shards = shard_rate * DAY
    return Day(
        side=side,
        steps=steps,
        seconds=seconds,
        rows=rate * DAY,
        shards=shards,
        bytes=rate * DAY * size,
        puts=puts * DAY,
        lists=2 * shards / given.list_keys,  # a run lists the commits at its start and before it publishes
        gets=shards,  # publishing reads each commit once
        parts=tuple(parts),
    )


def put_requests(size: float) -> int:
    """Requests that s3fs makes to write one object: one, or the parts of an upload with its begin and end."""
    return 1 if size < ONE_PUT else 2 + math.ceil(size / PART)


def storage_price(size: float, given: Assumptions) -> float:
    """Dollars a month of that many bytes."""
    left, price = size / 1e9, 0.0
    for amount, dollars in given.month_price:
        price += min(left, amount) * dollars
        left = max(0.0, left - amount)
    return price


def document(found: Measured, given: Assumptions) -> str:
    """The Markdown."""
    days = [day(side, steps, found, given) for side in SIDES for steps in STEPS]
    return "\n".join([*_head(found, given), *_production(days, given), *_saturation(days, given)]) + "\n"


def _head(found: Measured, given: Assumptions) -> list[str]:
    flops = row_flops(512, 20)
    step = flops["network"] / 20
    weights = 2 * PARAMETERS / given.gpu_bytes
    driver = "not measured yet" if found.driver_seconds is None else f"{1000 * found.driver_seconds:.2f} ms"
    return [
        f"# What {given.gpus:,} GPUs would produce\n",
        "Written by `python -m jobs.tools.throughput --write`. It is computed from what was measured on the machine "
        "of the benches and on one H100, and from what is stated: no thousand GPUs were at hand.\n",
        f"**Measured** ({found.source}): one core scores, encodes and writes {found.finish_rows:.2f} rows/s of 512 x "
        f"512, of {found.row_bytes / 1e3:,.0f} kB each; the driver's CPU time a shard: {driver}. For 1024 x 1024 both "
        "are scaled by pixels.\n",
        f"**Counted**, FLUX.1-dev with the adapter, one `joint` row of 512 x 512, 20 steps: network "
        f"{flops['network'] / 1e12:,.0f} TFLOP ({step / 1e12:.1f} a step), both VAE decodings "
        f"{flops['VAE'] / 1e12:.1f}, a prompt {flops['text'] / 1e12:.1f}. So the text encoders have "
        f"{flops['text'] / sum(flops.values()):.2%} of a row's work, and one prompt for all rows (depth) saves that.\n",
        f"**Stated**: an H100 SXM has {given.gpu_flops / 1e12:,.0f} TFLOP/s in dense bf16 and "
        f"{given.gpu_bytes / 1e12:.2f} TB/s of memory (NVIDIA's data sheet); S3 Standard in us-east-1 costs "
        f"${given.put_price * 1000:.3f} a thousand PUT or LIST, ${given.get_price * 1000:.4f} a thousand GET, "
        f"${given.month_price[0][1]}, {given.month_price[1][1]}, {given.month_price[2][1]} a GB and month (first "
        f"50 TB, next 450, beyond), and takes {given.puts_a_second:,} writes/s a prefix (AWS's documentation).\n",
        f"**Assumed**: {given.flop_use:.0%} of the peak is reached, as one H100 did with 512 x 512 and batches of 4, "
        f"not compiled (39.5%, [jobs/tools/GPU.json](../jobs/tools/GPU.json)); {given.cores_a_gpu} cores and "
        f"{given.network_a_gpu * 8 / 1e9:.0f} Gbit/s beside each GPU; shards of {given.shard_rows} rows, PNG, no point "
        "clouds; every row is kept. At that use a step of one pair takes "
        f"{1000 * step / given.gpu_flops / given.flop_use:.0f} ms, and reading all weights once "
        f"{1000 * weights:.0f} ms: arithmetic binds, not memory.\n",
    ]


def _production(days: Sequence[Day], given: Assumptions) -> list[str]:
    lines = [
        "## A day\n",
        "| pixels | steps | s a row | rows | shards | TB | $ a month to store it | PUT | LIST | GET | $ for requests |",
        f"|{'---|' * 11}",
    ]
    for each in days:
        requests = (each.puts + each.lists) * given.put_price + each.gets * given.get_price
        lines.append(
            f"| {each.side} x {each.side} | {each.steps} | {each.seconds:.2f} | {each.rows / 1e6:.1f} M | "
            f"{each.shards:,.0f} | {each.bytes / 1e12:.1f} | {storage_price(each.bytes, given):,.0f} | "
            f"{each.puts:,.0f} | {each.lists:,.0f} | {each.gets:,.0f} | {requests:,.2f} |"
        )
    return [
        *lines,
        "\nA shard has two objects, its table and its commit. The commit is one PUT; s3fs sends a table of "
        f"{ONE_PUT >> 20} MiB or more in parts of {PART >> 20} MiB, with a request before and one after. A run lists "
        f"the commits at its start and before it publishes, {given.list_keys:,} names a request, and publishing reads "
        "each once; leases, plans and the version are a few requests a minute. A PLY file a row would add as many PUTs "
        f"as rows: ${days[0].rows * given.put_price:,.0f} a day for the first line. Point clouds as columns of the "
        "tables add none. GETs of the input are the corpus's own: one an image, or a few a table.\n",
    ]


def _saturation(days: Sequence[Day], given: Assumptions) -> list[str]:
    names = [part.name for part in days[0].parts]
    lines = [
        "## What runs full first\n",
        f"Share in use while {given.gpus:,} GPUs work; in brackets, of what all share, the GPUs at which it is full.\n",
        f"| pixels | steps | {' | '.join(names)} | first |",
        f"|{'---|' * (3 + len(names))}",
    ]
    for each in days:
        shares = [_share(part, given) for part in each.parts]
        first = "GPUs" if each.first_full.load < 1 else each.first_full.name
        lines.append(f"| {each.side} x {each.side} | {each.steps} | {' | '.join(shares)} | {first} |")
    worst = max(days, key=lambda each: each.first_full.load)
    part = worst.first_full
    where = f"with {worst.side} x {worst.side} and {worst.steps} steps"
    if part.load < 1:
        says = f"The GPUs run full first at every size and number of steps here; the next is {part.name}, at "
        says += f"{part.load:.0%} {where}."
    else:
        says = f"Not everywhere do the GPUs run full first: {part.name} would need {part.load:.1f} times what there is "
        says += f"{where}, and the rows above are what GPUs make that nothing holds up."
    return [*lines, f"\n{says}"]


def _share(part: Part, given: Assumptions) -> str:
    if part.there == "each GPU":
        return f"{part.load:.1%}"
    return f"{part.load:.2%} ({given.gpus / part.load:,.0f})"


def main(arguments: Sequence[str]) -> int:
    """Print the document, or write it with --write."""
    try:
        text = document(measured(read_results()), Assumptions())
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
