"""KITTI, Eigen's test split with the improved ground truth, compared inside Eigen's mask.

Image and map are cropped as the benchmark does. List: image, depth or None (45 of 697 images have no depth and are
skipped), focal length (not used).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import InputError
from jointdit.evaluation.benchmarks.benchmark import Benchmark, BenchmarkSample, in_range
from jointdit.evaluation.benchmarks.files import DatasetFiles, decode_depth_png, decode_rgb

MIN_DEPTH, MAX_DEPTH = 1e-5, 80.0  # metres
UNITS_PER_METRE = 256.0
CROP_HEIGHT, CROP_WIDTH = 352, 1216  # pixels, bottom centre
EIGEN_ROWS, EIGEN_COLUMNS = (0.3324324, 0.91351351), (0.0359477, 0.96405229)  # fractions of the cropped size


def benchmark_crop(array: NDArray[Any]) -> NDArray[Any]:
    """Return the bottom centre 352 x 1216 of an array (H, W, ...)."""
    top, left = array.shape[0] - CROP_HEIGHT, int((array.shape[1] - CROP_WIDTH) / 2)
    return array[top : top + CROP_HEIGHT, left : left + CROP_WIDTH]


def read(files: DatasetFiles, entry: list[str]) -> BenchmarkSample:
    """Read the sample of one line of the list."""
    rgb = decode_rgb(files.read(entry[0]), entry[0])
    depth = decode_depth_png(files.read(entry[1]), entry[1], UNITS_PER_METRE)
    for path, shape in ((entry[0], rgb.shape), (entry[1], depth.shape)):
        if shape[0] < CROP_HEIGHT or shape[1] < CROP_WIDTH:
            found = f"{shape[1]} x {shape[0]}"
            raise InputError(f"{files.source}: {path} is {found} pixels: give at least 1216 x 352 for KITTI's crop.")
    if rgb.shape[:2] == depth.shape:  # otherwise the check of sizes raises
        rgb, depth = benchmark_crop(rgb), benchmark_crop(depth)
    eigen = np.zeros(depth.shape, bool)
    rows, columns = (
        slice(*(int(fraction * size) for fraction in fractions))
        for fractions, size in zip((EIGEN_ROWS, EIGEN_COLUMNS), depth.shape, strict=True)
    )
    eigen[rows, columns] = True
    return BenchmarkSample(entry[0], rgb, depth, eigen & in_range(depth, MIN_DEPTH, MAX_DEPTH))


KITTI = Benchmark("kitti", "KITTI (Eigen)", 652, "eigen_test_files_with_gt.txt", 2, read, MIN_DEPTH, MAX_DEPTH)
