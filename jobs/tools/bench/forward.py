"""The network's forward pass beside diffusers' FLUX on the same doubled batch, their times over their operations."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from jobs.tools.bench.frame import Line, Settings
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
SHARES = {256: 0.2, 1024: 0.25, 4096: 0.55}  # of the bench's seconds


def measure(settings: Settings) -> Iterator[Line]:
    """One line a number of tokens: ours / theirs over our operations / theirs. Without an adapter both agree."""
    cores = use_all_cores(settings.quick)
    for tokens in IMAGE_TOKENS[: 1 if settings.quick else None]:
        ours, flux = networks()
        given = inputs(PAIRS_OF_ROWS[tokens], tokens)
        with torch.no_grad():
            same = check_equal("the velocity", ours(**given).sample, flux(**given).sample)
        fill_adapter(ours)
        count = forward_flops(ours.config, PAIRS_OF_ROWS[tokens], tokens, given["encoder_hidden_states"].shape[1])
        found = take_turns(settings, forward_side(ours, given), forward_side(flux, given), SHARES[tokens])
        yield over_operations(
            found,
            tokens,
            (count.total, count.flux),
            1.05,
            f"; of it the second attention {count.cross_attention / count.flux:.1%}, "
            f"the joint Linears {count.joint_linears / count.flux:.1%}, the LoRA {count.depth_lora / count.flux:.1%}",
            f"width {width()}, LoRA rank {LORA_RANK}, float32, {cores} threads; with a fresh adapter both velocities "
            f"are the same within {same:.1g}",
        )
