"""ETH3D, the high-resolution training scenes: depth as raw float32, inf where unknown.

List: image (JPEG), depth (a file of the same name that is not an image). Scale and shift are fitted on at most 1024
pixels per side. Format (eth3d.net, documentation, multi-view data): row-major little-endian float32 without header.
"""

from __future__ import annotations

import math

import numpy as np

from jointdit.errors import InputError
from jointdit.evaluation.benchmarks.benchmark import Benchmark, BenchmarkSample, in_range
from jointdit.evaluation.benchmarks.files import DatasetFiles, decode_rgb

MIN_DEPTH, MAX_DEPTH = 1e-5, math.inf  # metres
LONG_SIDE = 756  # working size of the estimator in pixels
ALIGNMENT_RESOLUTION = 1024


def read(files: DatasetFiles, entry: list[str]) -> BenchmarkSample:
    """Read the sample of one line of the list."""
    rgb = decode_rgb(files.read(entry[0]), entry[0])
    data = files.read(entry[1])
    height, width = rgb.shape[:2]
    if len(data) != 4 * height * width:
        raise InputError(
            f"{files.source}: {entry[1]} has {len(data)} bytes, and float32 of the image's {width} x {height} pixels "
            f"{4 * height * width}: copy it again."
        )
    depth = np.frombuffer(data, dtype="<f4").reshape(height, width).astype(np.float32)
    depth[np.isinf(depth)] = 0.0
    return BenchmarkSample(entry[0], rgb, depth, in_range(depth, MIN_DEPTH, MAX_DEPTH))


ETH3D = Benchmark(
    "eth3d",
    "ETH3D",
    454,
    "eth3d_filename_list.txt",
    2,
    read,
    MIN_DEPTH,
    MAX_DEPTH,
    long_side=LONG_SIDE,
    alignment_resolution=ALIGNMENT_RESOLUTION,
)
