"""ScanNet, 800 frames of the validation scenes.

Colour must be resized to the depth camera's size. List: image, depth.
"""

from __future__ import annotations

from jointdit.evaluation.benchmarks.benchmark import Benchmark, BenchmarkSample, in_range
from jointdit.evaluation.benchmarks.files import DatasetFiles, decode_depth_png, decode_rgb

MIN_DEPTH, MAX_DEPTH = 1e-3, 10.0  # metres
UNITS_PER_METRE = 1000.0


def read(files: DatasetFiles, entry: list[str]) -> BenchmarkSample:
    """Read the sample of one line of the list."""
    rgb = decode_rgb(files.read(entry[0]), entry[0])
    depth = decode_depth_png(files.read(entry[1]), entry[1], UNITS_PER_METRE)
    return BenchmarkSample(entry[0], rgb, depth, in_range(depth, MIN_DEPTH, MAX_DEPTH))


SCANNET = Benchmark("scannet", "ScanNet", 800, "scannet_val_sampled_list_800_1.txt", 2, read, MIN_DEPTH, MAX_DEPTH)
