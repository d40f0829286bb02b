"""DIODE, the validation set, indoors and outdoors: depth and mask as npy.

List: image, depth, mask. Only the mask selects the compared pixels.
"""

from __future__ import annotations

import numpy as np

from jointdit.evaluation.benchmarks.benchmark import Benchmark, BenchmarkSample
from jointdit.evaluation.benchmarks.files import DatasetFiles, decode_npy, decode_rgb

MIN_DEPTH, MAX_DEPTH = 0.6, 350.0  # metres
LONG_SIDE = 640  # working size of the estimator in pixels


def read(files: DatasetFiles, entry: list[str]) -> BenchmarkSample:
    """Read the sample of one line of the list."""
    rgb = decode_rgb(files.read(entry[0]), entry[0])
    depth = decode_npy(files.read(entry[1]), entry[1]).astype(np.float32)
    mask = decode_npy(files.read(entry[2]), entry[2]).astype(bool)
    return BenchmarkSample(entry[0], rgb, depth, mask)


DIODE = Benchmark(
    "diode", "DIODE", 771, "diode_val_all_filename_list.txt", 3, read, MIN_DEPTH, MAX_DEPTH, long_side=LONG_SIDE
)
