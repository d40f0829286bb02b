"""The network's forward pass beside FLUX's, and with torch.compile beside without."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from jobs.tools.bench.frame import Line, Settings, timed
from jobs.tools.bench.networks import (
    LORA_RANK,
    check_equal,
    fill_adapter,
    forward_side,
    inputs,
    networks,
    over_operations,
    take_turns,
    use_all_cores,
    width,
)
from jointdit.profiling.flops import forward_flops

IMAGE_TOKENS = (256, 1024, 4096)
PAIRS_OF_ROWS = {256: 2, 1024: 1, 4096: 1}
SHARES = {256: 0.2, 1024: 0.25, 4096: 0.55}  # of the time limit


def measure(settings: Settings) -> Iterator[Line]:
    """Yield one line per number of tokens: the ratio of times over the ratio of operations."""
    cores = use_all_cores(settings.quick)
    for tokens in IMAGE_TOKENS[: 1 if settings.quick else None]:
        ours, flux = networks()
        arguments = inputs(PAIRS_OF_ROWS[tokens], tokens)
        with torch.no_grad():
            difference = check_equal("the velocity", ours(**arguments).sample, flux(**arguments).sample)
        fill_adapter(ours)
        count = forward_flops(ours.config, PAIRS_OF_ROWS[tokens], tokens, arguments["encoder_hidden_states"].shape[1])
        turns = take_turns(settings, forward_side(ours, arguments), forward_side(flux, arguments), SHARES[tokens])
        yield over_operations(
            turns,
            tokens,
            (count.total, count.flux),
            1.05,
            f"; second attention {count.cross_attention / count.flux:.1%}, "
            f"joint Linears {count.joint_linears / count.flux:.1%}, LoRA {count.depth_lora / count.flux:.1%}",
            f"width {width()}, LoRA rank {LORA_RANK}, float32, {cores} threads; with a fresh adapter both velocities "
            f"are equal within {difference:.1g}",
        )


def measure_compiled(settings: Settings) -> Iterator[Line]:
    """Yield the ratio of the forward times; a note gives the time of compilation."""
    cores = use_all_cores(settings.quick)
    eager, _ = networks()
    fill_adapter(eager)
    compiled = copy.deepcopy(eager)
    compiled.compile_repeated_blocks()
    arguments = inputs(1, 256 if settings.quick else 1024)
    with torch.no_grad():
        first, velocity = timed(lambda: compiled(**arguments).sample)
        difference = check_equal("the velocity", velocity, eager(**arguments).sample)
    turns = take_turns(settings, forward_side(compiled, arguments), forward_side(eager, arguments), 0.5)
    notes = [
        f"the first forward, which compiles, takes {first:.0f} s; one pair, width {width()}, float32, {cores} threads; "
        f"velocities equal within {difference:.1g}"
    ]
    yield turns.line(f"forward, {len(arguments['img_ids'])} image tokens", "s", None, notes)
