"""NYU Depth v2, the labelled test set: 480 x 640, compared inside Eigen's crop.

List: image, raw depth, filled depth (not used, because holes of the raw map do not count).
"""

from __future__ import annotations

import numpy as np

from jointdit.errors import InputError
from jointdit.evaluation.benchmarks.benchmark import Benchmark, BenchmarkSample, in_range
from jointdit.evaluation.benchmarks.files import DatasetFiles, decode_depth_png, decode_rgb

MIN_DEPTH, MAX_DEPTH = 1e-3, 10.0  # metres
UNITS_PER_METRE = 1000.0
SHAPE = (480, 640)
EIGEN_ROWS, EIGEN_COLUMNS = slice(45, 471), slice(41, 601)


def read(files: DatasetFiles, entry: list[str]) -> BenchmarkSample:
    """Read the sample of one line of the list."""
    rgb = decode_rgb(files.read(entry[0]), entry[0])
    depth = decode_depth_png(files.read(entry[1]), entry[1], UNITS_PER_METRE)
    if depth.shape != SHAPE:
        found = f"{depth.shape[1]} x {depth.shape[0]}"
        raise InputError(f"{files.source}: {entry[1]} is {found} pixels: give 640 x 480 for NYUv2's crop.")
    crop = np.zeros(SHAPE, bool)
    crop[EIGEN_ROWS, EIGEN_COLUMNS] = True
    return BenchmarkSample(entry[0], rgb, depth, crop & in_range(depth, MIN_DEPTH, MAX_DEPTH))


NYUV2 = Benchmark("nyuv2", "NYUv2", 654, "filename_list_test.txt", 2, read, MIN_DEPTH, MAX_DEPTH)
