"""A Linear with LoRA on the depth half, beside split and concatenation; forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from jobs.tools.bench.attention import peak_line
from jobs.tools.bench.frame import Line, Reach, Settings, Side, Turn, timed
from jobs.tools.bench.networks import LORA_RANK, TEXT_TOKENS, check_equal, take_turns, use_all_cores, width
from jointdit.model.depth_lora import ADAPTER_NAME, LORA_SCALE, DepthHalfLora

IMAGE_TOKENS = (256, 1024, 4096)
SHARES = {256: 0.1, 1024: 0.15, 4096: 0.25}  # of the time limit, for forward and for backward
Layer = Callable[[torch.Tensor], torch.Tensor]


def measure(settings: Settings) -> Iterator[Line]:
    """Yield three lines per number of tokens: forward, forward and backward, memory of forward."""
    cores = use_all_cores(settings.quick)
    torch.manual_seed(0)
    layer = DepthHalfLora(nn.Linear(width(), 3 * width()).requires_grad_(False), LORA_RANK)
    nn.init.normal_(layer.lora_B[ADAPTER_NAME].weight, std=0.02)
    sides: tuple[Layer, Layer] = (layer, _naive(layer))
    for tokens in IMAGE_TOKENS[: 1 if settings.quick else None]:
        x = torch.randn(4, tokens + TEXT_TOKENS, width())
        with torch.no_grad():
            difference = check_equal("the result", *(call(x) for call in sides))
        notes = [
            f"2 pairs, {tokens} image and {TEXT_TOKENS} text tokens, {width()} -> {3 * width()}, rank {LORA_RANK}, "
            f"float32, {cores} threads; results equal within {difference:.1g}"
        ]
        for backward in (False, True):
            ours, theirs = (_side(call, x, layer, backward) for call in sides)
            turns = take_turns(settings, ours, theirs, SHARES[tokens], pairs=60)
            what = "forward and backward" if backward else "forward"
            yield turns.line(f"LoRA, {what}, {tokens} image tokens", "s", Reach("at most", 1.0), notes)
            notes = []
        run, naive = (lambda call=call, x=x: call(x) for call in sides)
        yield peak_line(f"its memory, {tokens} image tokens", run, naive, [x, *layer.parameters()])


def _naive(layer: DepthHalfLora) -> Layer:
    """Apply the base layer to each half and LoRA to the second, then concatenate."""
    base, a, b = layer.base_layer, layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]

    def forward(x: torch.Tensor) -> torch.Tensor:
        rgb, depth = x.chunk(2)
        return torch.cat([base(rgb), base(depth) + LORA_SCALE * b(a(depth))])

    return forward


def _side(call: Layer, x: torch.Tensor, layer: DepthHalfLora, backward: bool) -> Side:
    trained = [layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight]
    gradient = torch.randn(*x.shape[:2], layer.out_features, generator=torch.Generator().manual_seed(4))

    def run() -> torch.Tensor:
        if not backward:
            with torch.no_grad():
                return call(x)
        inputs = x.clone().requires_grad_(True)
        output = call(inputs)
        torch.autograd.grad(output, [inputs, *trained], gradient)
        return output

    def side() -> Turn:
        seconds, output = timed(run)
        return Turn(seconds, {"rows": len(output), "numbers": output.numel()})

    return side
