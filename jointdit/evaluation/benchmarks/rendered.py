"""Rendered scenes as a benchmark: a folder that `jointdit scenes` wrote."""

from __future__ import annotations

import json

import numpy as np

from jointdit.errors import InputError
from jointdit.evaluation.benchmarks.benchmark import Benchmark, BenchmarkSample, in_range
from jointdit.evaluation.benchmarks.files import DatasetFiles, decode_npy, decode_rgb
from jointdit.evaluation.metrics import SCENE_RANGE


def parse_list(text: str, name: str, columns: int) -> list[list[str]]:
    """Return image and depth of each line of metadata.jsonl. Raises InputError."""
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line)
            entries.append([str(record["rgb"]), str(record["depth"])])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{name}, line {number}: not JSON with rgb and depth; write it with jointdit scenes."
            ) from None
    if not entries:
        raise InputError(f"{name} lists no scene: write it with jointdit scenes.")
    return entries


def read(files: DatasetFiles, entry: list[str]) -> BenchmarkSample:
    """Read the sample of one line of the list."""
    rgb = decode_rgb(files.read(entry[0]), entry[0])
    depth = decode_npy(files.read(entry[1]), entry[1]).astype(np.float32)
    return BenchmarkSample(entry[0], rgb, depth, in_range(depth, *SCENE_RANGE))


SCENES = Benchmark("scenes", "Rendered scenes", None, "metadata.jsonl", 2, read, *SCENE_RANGE, parse_list=parse_list)
