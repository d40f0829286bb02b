"""Networks and inputs of the model's benches.

JointDiT and the plain FLUX as its baseline. Width 512, one double and two single blocks (FLUX has 19 and 38), 64 text
tokens, LoRA rank 64 in every layer. What JointDiT adds weighs more here than in FLUX.1, because the width is small: the
share of attention grows with tokens / width, and a rank of 64 is an eighth of this width.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from jobs.tools.bench.frame import Line, Pairs, Reach, Settings, Side, Spread, Turn, alternate, timed
from jointdit.errors import PermanentError
from jointdit.model.latents import image_position_ids, text_position_ids
from jointdit.model.transformer import JointDiTTransformer2DModel

CONFIG: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 4,
    "joint_attention_dim": 512,
    "pooled_projection_dim": 128,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
LORA_RANK = 64
TEXT_TOKENS = 64
TOLERANCE = 1e-4  # of outputs of about 1, float32


def width() -> int:
    """Return the networks' width."""
    return int(CONFIG["attention_head_dim"] * CONFIG["num_attention_heads"])


def use_all_cores(quick: bool = False) -> int:
    """Let PyTorch use every core of this process, except in a quick run; return the number of threads."""
    if quick:
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    return cores


def networks() -> tuple[JointDiTTransformer2DModel, FluxTransformer2DModel]:
    """Return JointDiT with a fresh adapter, which equals the base network in each half, and the base network."""
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(**CONFIG).eval()
    return JointDiTTransformer2DModel.from_flux(copy.deepcopy(flux), lora_ranks=LORA_RANK), flux


def fill_adapter(model: JointDiTTransformer2DModel) -> None:
    """Fill LoRA B and joint Linears with non-zero values, as in a trained adapter."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.adapter_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def inputs(pairs: int, image_tokens: int) -> dict[str, Any]:
    """Return the arguments of a forward of either network on 2 * pairs rows; image_tokens is a square number."""
    generator = torch.Generator().manual_seed(2)
    rows, side = 2 * pairs, round(image_tokens**0.5)
    text = torch.randn(pairs, TEXT_TOKENS, CONFIG["joint_attention_dim"], generator=generator)
    pooled = torch.randn(pairs, CONFIG["pooled_projection_dim"], generator=generator)
    return {
        "hidden_states": torch.randn(rows, image_tokens, CONFIG["in_channels"], generator=generator),
        "timestep": torch.full((rows,), 0.6),
        "guidance": torch.full((rows,), 3.5),
        "encoder_hidden_states": torch.cat([text, text]),
        "pooled_projections": torch.cat([pooled, pooled]),
        "img_ids": image_position_ids(side, side),
        "txt_ids": text_position_ids(TEXT_TOKENS),
    }


def check_equal(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference. Raises PermanentError if it exceeds TOLERANCE."""
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:
        raise PermanentError(
            f"{what} of the two sides differs by {difference:g}, more than {TOLERANCE}: fix the bench."
        )
    return difference


def forward_side(model: Callable[..., Any], arguments: dict[str, Any]) -> Side:
    """Return a side that calls a network without gradients."""

    def side() -> Turn:
        with torch.no_grad():
            seconds, output = timed(lambda: model(**arguments).sample)
        return Turn(seconds, {"rows": len(output), "velocities": output.numel()})

    return side


def take_turns(settings: Settings, ours: Side, theirs: Side, share: float, pairs: int = 15) -> Pairs:
    """Alternate two sides for a share of the time limit; a quick run makes two pairs without a warm-up."""
    return alternate(
        ours,
        theirs,
        pairs=2 if settings.quick else pairs,
        seconds=settings.seconds * share,
        warm_up=not settings.quick,
    )


def over_operations(
    turns: Pairs, tokens: int, operations: tuple[int, int], limit: float, counted: str, how: str
) -> Line:
    """Return the line of time per operation.

    `operations`: ours and FLUX's; `counted`, `how`: notes on the count and the settings.
    """
    ours, flux = operations
    line = turns.line(
        f"time over operations, {tokens} image tokens",
        "s",
        Reach("at most", limit),
        [
            f"operations: {ours / 1e9:.1f} G, FLUX {flux / 1e9:.1f} G, so {ours / flux:.3f} times{counted}",
            f"time: {turns.ratio.median:.3f} times FLUX's ({turns.ratio.low:.3f} to {turns.ratio.high:.3f})",
            how,
        ],
    )
    ratio, factor = turns.ratio, flux / ours
    figure = Spread(ratio.median * factor, ratio.low * factor, ratio.high * factor, ratio.count)
    return replace(line, figure=figure)
