"""The definition of a benchmark, and an estimator's scores on it: means over images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.evaluation.alignment import Alignment, FloatArray
from jointdit.evaluation.benchmarks.files import DatasetFiles, open_dataset, read_list
from jointdit.evaluation.estimators import DepthEstimator
from jointdit.evaluation.metrics import depth_metrics


class BenchmarkSample(NamedTuple):
    """One image. name: of its file. rgb: uint8 (H, W, 3). depth: metres (H, W). mask: where depth counts (H, W)."""

    name: str
    rgb: NDArray[np.uint8]
    depth: FloatArray
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Benchmark:
    """A data set and its protocol. `read` reads the sample of one line of the list."""

    name: str
    title: str
    images: int | None  # number of images with depth in the full set; None: not fixed
    list_file: str  # Marigold's name of the list; read from the root if no list is given
    columns: int
    read: Callable[[DatasetFiles, list[str]], BenchmarkSample]
    min_depth: float  # metres; predictions are clipped to this range
    max_depth: float
    long_side: int | None = None  # working size of the estimator in pixels; None: the image's own size
    alignment_resolution: int | None = None  # pixels per side for the fit; None: all
    parse_list: Callable[[str, str, int], list[list[str]]] = read_list


@dataclass(frozen=True)
class BenchmarkResult:
    """Mean metrics over `images` of `listed` images, seconds per image, and the metrics of each image by name."""

    benchmark: str
    estimator: str
    alignment: Alignment
    images: int
    listed: int
    seconds: float
    metrics: dict[str, float]
    by_image: dict[str, dict[str, float]]

    @property
    def is_whole(self) -> bool:
        """Whether all listed images were compared."""
        return self.images == self.listed


def read_samples(
    benchmark: Benchmark, root: Path, list_file: Path | None = None, limit: int | None = None
) -> tuple[int, Iterator[BenchmarkSample]]:
    """Return the number of listed images, and an iterator that reads the first `limit` of them.

    Args:
        benchmark: one of BENCHMARKS.
        root: folder or tar archive of the data set.
        list_file: list of images; default the benchmark's `list_file` in the root.
        limit: maximum number of images; None for all.

    Raises:
        InputError: the root or the list is missing, or the list is invalid; from the iterator, a file is missing, has
            the wrong shape, or has no valid pixel.
    """
    with open_dataset(root) as files:
        entries = _entries(benchmark, files, list_file)

    def samples() -> Iterator[BenchmarkSample]:
        with open_dataset(root) as files:
            for entry in entries[:limit]:
                yield _checked(benchmark.read(files, entry), entry, files.source)

    return len(entries), samples()


def evaluate_benchmark(
    benchmark: Benchmark,
    root: Path,
    estimator: DepthEstimator,
    list_file: Path | None = None,
    limit: int | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> BenchmarkResult:
    """Score an estimator. on_image: called after each image with (done, total). See `read_samples`."""
    listed, samples = read_samples(benchmark, root, list_file, limit)
    total = listed if limit is None else min(limit, listed)
    by_image: dict[str, dict[str, float]] = {}
    seconds = 0.0
    for sample in samples:
        start = time.perf_counter()
        prediction = estimator.estimate(sample.rgb, benchmark.long_side)
        seconds += time.perf_counter() - start
        by_image[sample.name] = depth_metrics(
            prediction,
            sample.depth,
            sample.mask,
            estimator.space,
            min_depth=benchmark.min_depth,
            max_depth=benchmark.max_depth,
            max_resolution=benchmark.alignment_resolution,
        )
        if on_image is not None:
            on_image(len(by_image), total)
    names = next(iter(by_image.values()))
    means = {name: float(np.mean([scores[name] for scores in by_image.values()])) for name in names}
    return BenchmarkResult(
        benchmark=benchmark.name,
        estimator=estimator.name,
        alignment=estimator.space,
        images=len(by_image),
        listed=listed,
        seconds=seconds / len(by_image),
        metrics=means,
        by_image=by_image,
    )


def in_range(depth: FloatArray, low: float, high: float) -> NDArray[np.bool_]:
    """Return a mask (H, W) of pixels strictly between two distances in metres."""
    return np.asarray((depth > low) & (depth < high) & (depth < math.inf))


def _entries(benchmark: Benchmark, files: DatasetFiles, list_file: Path | None) -> list[list[str]]:
    if list_file is None:
        name = f"{files.source}: {benchmark.list_file}"
        try:
            text = files.read(benchmark.list_file).decode("utf-8")
        except InputError:
            raise InputError(
                f"{files.source} has no {benchmark.list_file}, the list of images of {benchmark.title}: "
                f"put it there or give it with --list {benchmark.name}=FILE."
            ) from None
    else:
        name = str(list_file)
        try:
            text = list_file.read_text(encoding="utf-8")
        except OSError:
            raise InputError(f"{list_file} cannot be read: give the list of images of {benchmark.title}.") from None
    return benchmark.parse_list(text, name, benchmark.columns)


def _checked(sample: BenchmarkSample, entry: list[str], source: Path) -> BenchmarkSample:
    if sample.rgb.shape[:2] != sample.depth.shape or sample.mask.shape != sample.depth.shape:
        image, depth = (f"{shape[1]} x {shape[0]}" for shape in (sample.rgb.shape, sample.depth.shape))
        mask = f"{sample.mask.shape[1]} x {sample.mask.shape[0]}"
        raise InputError(
            f"{source}: {entry[0]} is {image} pixels, its depth {depth}, its mask {mask}: give files of one size."
        )
    if not sample.mask.any():
        raise InputError(
            f"{source}: {entry[1]} has no valid pixel inside mask, crop and range: check its unit, or remove it."
        )
    if not (np.isfinite(sample.depth[sample.mask]).all() and (sample.depth[sample.mask] > 0).all()):
        raise InputError(
            f"{source}: {entry[1]} holds NaN, inf or z <= 0 where the mask is True: repair the map or its mask."
        )
    return sample
