"""Blocks with torch.compile (`model.compile: true`), beside the same network without it."""

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
    """Yield the ratio of the forward times; a note gives the time of compilation."""
    cores = use_all_cores(settings.quick)
    eager, _ = networks()
    fill_adapter(eager)
    compiled = copy.deepcopy(eager)
    compiled.compile_repeated_blocks()
    arguments = inputs(1, 256 if settings.quick else TOKENS)
    with torch.no_grad():
        first, velocity = timed(lambda: compiled(**arguments).sample)
        difference = check_equal("the velocity", velocity, eager(**arguments).sample)
    turns = take_turns(settings, forward_side(compiled, arguments), forward_side(eager, arguments), 0.5)
    notes = [
        f"the first forward, which compiles, takes {first:.0f} s; one pair, width {width()}, float32, {cores} threads; "
        f"velocities equal within {difference:.1g}"
    ]
    yield turns.line(f"forward, {len(arguments['img_ids'])} image tokens", "s", None, notes)
