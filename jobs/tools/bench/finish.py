"""Rows/s that one CPU core scores, encodes and writes at 512 x 512, in units of a GPU's rate.

The real `finish_shard` on a local disk, on rendered scenes with the noise that models leave: clean renderings would be
compressed far better than what a model gives. The time is that of the process on all its threads, so it is per core.
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

GPU_ROWS_A_SECOND = 0.3  # of one H100 at 512 x 512, by the task's statement: what a core is measured against
GPUS_A_CORE = 8
GREY_NOISE, DISPARITY_NOISE = 4.0, 2e-4  # standard deviations: of 255, of 1
CODECS: dict[str, dict[str, Any]] = {
    "PNG": {"image_format": "png"},
    "JPEG": {"image_format": "jpeg"},
    "WebP, exact": {"image_format": "webp"},
    "PNG and a point cloud of 262,144": {"image_format": "png", "points": {"format": "ply"}},
}


def measure(settings: Settings) -> Iterator[Line]:
    """One line a codec; the default's first."""
    side, rows = (64, 2) if settings.quick else (512, 16)
    results = noisy_results(rows, side)
    reach = Reach("at least", GPUS_A_CORE)
    for name, output in list(CODECS.items())[: 1 if settings.quick else None]:
        context = context_of(settings.folder / name, "joint", side, output={**output, "shard_rows": rows})
        turns = repeat(
            _finishing(context, results), times=1 if settings.quick else 9, seconds=settings.seconds / len(CODECS)
        )
        rates = Spread.of([turn.value for turn in turns])
        gpus = Spread.of([turn.value / GPU_ROWS_A_SECOND for turn in turns])
        size = turns[0].work["bytes"] / rows
        notes = [
            f"figure: GPUs of {GPU_ROWS_A_SECOND:g} rows/s that one core serves; {size:,.0f} bytes a row; depth as PNG "
            "of 16 bit in each, all scores of pixels measured"
        ]
        yield Line(name, "rows/s a core", rates, gpus, None, reach, turns[0].work, tuple(notes))


def noisy_results(count: int, side: int) -> list[tuple[Row, SampleResult]]:
    """Rows and what a model might have made of them."""
    found = []
    for number in range(count):
        scene = render_scene(HELD_OUT_SEED + number, side, side, 1)
        noise = np.random.default_rng(number)
        grey = scene.rgb + noise.normal(0, GREY_NOISE, scene.rgb.shape)
        disparity = disparity_from_depth(scene.depth.astype(np.float32), np.isfinite(scene.depth), "metric")
        disparity = np.clip(disparity + noise.normal(0, DISPARITY_NOISE, disparity.shape), 0, 1).astype(np.float32)
        row = Row(f"row:{number}", "/rows.txt", number, prompt=scene.caption)
        sample = Sample(f"{row.id}/0", row, 0, 0, number)
        found.append((row, SampleResult(sample, rgb=np.clip(grey, 0, 255).astype(np.uint8), disparity=disparity)))
    return found


def _finishing(context: RunContext, made: list[tuple[Row, SampleResult]]) -> Side:
    number = iter(range(10**6))

    def side() -> Turn:
        span = Span("/rows.txt", str(next(number)), "rows.txt", 0, len(made))  # each turn commits a shard of its own
        entry = PlannedShard(make_shard([span], 0, "bench"), 1, 1, 0)
        results = [SampleResult(each.sample, rgb=each.rgb, disparity=each.disparity) for _, each in made]
        rows = ShardRows(tuple(SourceRow(row) for row, _ in made), ())
        started = time.process_time()
        receipt = finish_shard(context, entry, rows, results)
        seconds = time.process_time() - started
        written = sum(Path(path).stat().st_size for path in _files(context, entry))
        assert written >= receipt.bytes > 0, f"{receipt.bytes} bytes in the commit, {written} on the disk"
        return Turn(receipt.counts["kept"] / seconds, {"rows": receipt.counts["kept"], "bytes": receipt.bytes})

    return side


def _files(context: RunContext, entry: PlannedShard) -> list[str]:
    found = [*context.storage.names("data"), *context.storage.names("pointclouds")]
    folders = [f"data/{name}" for name in context.storage.names("data")]
    folders += [f"pointclouds/{name}" for name in context.storage.names("pointclouds")]
    assert found
    return [context.storage.path(name) for name in folders if entry.shard.id in name]
