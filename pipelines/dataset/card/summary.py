"""stats.json: counts, reasons and sizes, with quantiles and histograms of scores and depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipelines.dataset.card.tables import SampledTables
from pipelines.ledger.versions import Version

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 20


def statistics(version: Version, sampled: SampledTables) -> dict[str, Any]:
    """Return the content of stats.json, ready for JSON. Scores and depth are those of the sampled tables."""
    content: dict[str, Any] = {
        "name": version.spec.name,
        "task": version.spec.task,
        "version": version.number,
        "created": version.created,
        "samples": sum(version.counts.values()),
        "counts": version.counts,
        "reasons": dict(sorted(version.reasons.items())),
        "superseded": version.superseded,
        "is_partial": version.is_partial,
        "left_out": version.left_out,
        "files": sum(size.files for size in version.sizes.values()),
        "bytes": sum(size.bytes for size in version.sizes.values()),
        "scored_samples": sampled.scored,
        "scored_files": sampled.scored_tables[0],
        "scores": {name: summary(values) for name, values in sampled.scores.items() if len(values)},
    }
    if sampled.depth_images:
        depth = {"disparity": summary(sampled.disparity), "metres": summary(sampled.metres)}
        content["depth"] = {"pictures": sampled.depth_images, **depth}
    return content


def summary(values: ArrayLike) -> dict[str, Any]:
    """Return number, mean, quantiles and histogram of finite values, at least one."""
    array = np.asarray(values, dtype=np.float64)
    low, high = float(array.min()), float(array.max())
    counts, edges = np.histogram(array, bins=BINS, range=(low, high if high > low else low + 1))
    return {
        "samples": len(array),
        "mean": float(array.mean()),
        "quantiles": {f"{q:g}": float(np.quantile(array, q)) for q in QUANTILES},
        "histogram": {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]},
    }


def bars(counts: Sequence[int]) -> str:
    """Draw a histogram as a line of block characters."""
    top = max(counts)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // top)] for count in counts)
