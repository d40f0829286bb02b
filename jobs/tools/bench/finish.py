"""Rows/s that one CPU core scores, encodes and writes, relative to a GPU's rate.

`finish_shard` writes to a local disk. Rendered scenes get the noise of a model's output, because clean renderings
compress far better. The time is the CPU time of all threads of the process, so the rate is per core.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs.tools.bench.frame import Line, Reach, Settings, Side, Spread, Turn, repeat
from jobs.tools.bench.local_runs import context_of
from jointdit.geometry.depth import disparity_from_depth
from jointdit.scenes import render_scene
from jointdit.scenes.sampling import HELD_OUT_SEED
from pipelines.ledger.entries import PlannedShard
from pipelines.plan.shards import make_shard
from pipelines.records import Row, Sample, SampleResult, Span
from pipelines.stages.context import RunContext
from pipelines.stages.finish import finish_shard
from pipelines.stages.read import ShardRows, SourceRow

GPU_ROWS_PER_SECOND = 0.3  # assumed rate of one H100 at 512 x 512
GPUS_PER_CORE = 8
GREY_NOISE, DISPARITY_NOISE = 4.0, 2e-4  # standard deviations: of 255, of 1
CODECS: dict[str, dict[str, Any]] = {
    "PNG": {"image_format": "png"},
    "JPEG": {"image_format": "jpeg"},
    "WebP, exact": {"image_format": "webp"},
    "PNG and a point cloud of 262,144": {"image_format": "png", "points": {"format": "ply"}},
}


def measure(settings: Settings) -> Iterator[Line]:
    """Yield one line per codec, the default first."""
    side, rows = (64, 2) if settings.quick else (512, 16)
    results = noisy_results(rows, side)
    reach = Reach("at least", GPUS_PER_CORE)
    for name, output in list(CODECS.items())[: 1 if settings.quick else None]:
        context = context_of(settings.folder / name, "joint", side, output={**output, "shard_rows": rows})
        turns = repeat(
            _finishing(context, results), times=1 if settings.quick else 9, seconds=settings.seconds / len(CODECS)
        )
        rates = Spread.of([turn.value for turn in turns])
        gpus = Spread.of([turn.value / GPU_ROWS_PER_SECOND for turn in turns])
        size = turns[0].work["bytes"] / rows
        notes = [
            f"figure: GPUs of {GPU_ROWS_PER_SECOND:g} rows/s that one core serves; {size:,.0f} bytes per row; depth as "
            "16-bit PNG, with all pixel scores"
        ]
        yield Line(name, "rows/s a core", rates, gpus, None, reach, turns[0].work, tuple(notes))


def noisy_results(count: int, side: int) -> list[tuple[Row, SampleResult]]:
    """Return rows with results like those of a model: rendered scenes with noise."""
    rows = []
    for number in range(count):
        scene = render_scene(HELD_OUT_SEED + number, side, side, 1)
        noise = np.random.default_rng(number)
        grey = scene.rgb + noise.normal(0, GREY_NOISE, scene.rgb.shape)
        disparity = disparity_from_depth(scene.depth.astype(np.float32), np.isfinite(scene.depth), "metric")
        disparity = np.clip(disparity + noise.normal(0, DISPARITY_NOISE, disparity.shape), 0, 1).astype(np.float32)
        row = Row(f"row:{number}", "/rows.txt", number, prompt=scene.caption)
        sample = Sample(f"{row.id}/0", row, 0, 0, number)
        rows.append((row, SampleResult(sample, rgb=np.clip(grey, 0, 255).astype(np.uint8), disparity=disparity)))
    return rows


def _finishing(context: RunContext, generated: list[tuple[Row, SampleResult]]) -> Side:
    number = iter(range(10**6))

    def side() -> Turn:
        span = Span("/rows.txt", "", "rows.txt", 0, len(generated))
        entry = PlannedShard(make_shard([span], 0, f"bench {next(number)}"), 1, 1, 0)  # a new shard in each turn
        results = [SampleResult(made.sample, rgb=made.rgb, disparity=made.disparity) for _, made in generated]
        rows = ShardRows(tuple(SourceRow(row) for row, _ in generated), ())
        started = time.process_time()
        receipt = finish_shard(context, entry, rows, results)
        seconds = time.process_time() - started
        files = (f"{folder}/{name}" for folder in ("data", "pointclouds") for name in context.storage.names(folder))
        paths = [Path(context.storage.path(name)) for name in files if entry.shard.id in name]
        written = sum(path.stat().st_size for path in paths)
        assert written >= receipt.bytes > 0, f"{receipt.bytes} bytes in the commit, {written} on the disk"
        return Turn(receipt.counts["kept"] / seconds, {"rows": receipt.counts["kept"], "bytes": receipt.bytes})

    return side
