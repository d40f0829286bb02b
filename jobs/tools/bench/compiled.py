"""The blocks by torch.compile (`model.compile: true`), beside the same network without."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from jobs.tools.bench.frame import Line, Settings, timed
from jobs.tools.bench.networks import (
    check_equal,
    fill_adapter,
    forward_side,
    inputs,
    networks,
    take_turns,
    use_all_cores,
    width,
)

TOKENS = 1024


def measure(settings: Settings) -> Iterator[Line]:
    """The time of a forward over that without; what compiling takes is in the notes."""
    cores = use_all_cores(settings.quick)
    eager, _ = networks()
    fill_adapter(eager)
    compiled = copy.deepcopy(eager)
    compiled.compile_repeated_blocks()
    given = inputs(1, 256 if settings.quick else TOKENS)
    with torch.no_grad():
        first, velocity = timed(lambda: compiled(**given).sample)
        same = check_equal("the velocity", velocity, eager(**given).sample)
    found = take_turns(settings, forward_side(compiled, given), forward_side(eager, given), 0.5)
    notes = [
        f"the first forward compiles and takes {first:.0f} s; one pair, width {width()}, float32, {cores} threads; "
        f"same velocities within {same:.1g}"
    ]
    yield found.line(f"forward, {len(given['img_ids'])} image tokens", "s", None, notes)
