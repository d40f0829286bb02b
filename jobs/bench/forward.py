"""The network's forward pass beside diffusers' FLUX on the same doubled batch, their times over their operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from jobs.bench.frame import Line, Reach, Settings, Side, Turn, alternate, timed
from jobs.bench.networks import LORA_RANK, check_equal, fill_adapter, inputs, networks, scaled, use_all_cores, width
from jointdit.flops import forward_flops

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
        found = alternate(
            _side(ours, given),
            _side(flux, given),
            pairs=2 if settings.quick else 15,
            seconds=settings.seconds * SHARES[tokens],
            warm_up=not settings.quick,
        )
        line = found.line(
            f"time over operations, {tokens} image tokens",
            "s",
            Reach("at most", 1.05),
            [
                f"operations: {count.total / 1e9:.1f} G, FLUX {count.flux / 1e9:.1f} G, so "
                f"{count.total / count.flux:.3f} times; of it the second attention "
                f"{count.cross_attention / count.flux:.1%}, the joint Linears {count.joint_linears / count.flux:.1%}, "
                f"the LoRA {count.depth_lora / count.flux:.1%}",
                f"time: {found.ratio.median:.3f} times FLUX's ({found.ratio.low:.3f} to {found.ratio.high:.3f})",
                f"width {width()}, LoRA rank {LORA_RANK}, float32, {cores} threads; with a fresh adapter both "
                f"velocities are the same within {same:.1g}",
            ],
        )
        yield replace(line, figure=scaled(found.ratio, count.flux / count.total))


def _side(model: Callable[..., Any], given: dict[str, Any]) -> Side:
    def side() -> Turn:
        with torch.no_grad():
            seconds, output = timed(lambda: model(**given).sample)
        return Turn(seconds, {"rows": len(output), "velocities": output.numel()})

    return side
