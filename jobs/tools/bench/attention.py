"""The joint connection alone, beside a naive version."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional

from jobs.tools.bench.frame import Line, Reach, Settings, Side, Spread, Turn, timed
from jobs.tools.bench.networks import (
    CONFIG,
    TEXT_TOKENS,
    check_equal,
    fill_adapter,
    networks,
    take_turns,
    use_all_cores,
    width,
)
from jointdit.model.joint_attention import joint_weights
from jointdit.profiling.tensor_memory import TensorMemory

IMAGE_TOKENS = (256, 1024, 4096)
SHARES = {256: 0.2, 1024: 0.3, 4096: 0.5}
Connect = Callable[[], torch.Tensor]


def measure(settings: Settings) -> Iterator[Line]:
    """Yield two lines per number of tokens: time, and peak memory of new tensors."""
    cores = use_all_cores(settings.quick)
    attn = _layer()
    for tokens in IMAGE_TOKENS[: 1 if settings.quick else None]:
        tensors = _tensors(tokens)
        ours, naive = _ours(attn, tensors), _naive(attn, tensors)
        with torch.no_grad():
            difference = check_equal("the result", ours(), naive())
        turns = take_turns(settings, _side(ours), _side(naive), SHARES[tokens], pairs=60)
        how = (
            f"2 pairs, {tokens} image and {TEXT_TOKENS} text tokens, width {width()}, float32, {cores} threads; "
            f"results equal within {difference:.1g}"
        )
        yield turns.line(f"joint connection, {tokens} image tokens", "s", Reach("at most", 1.0), [how])
        yield peak_line(f"its memory, {tokens} image tokens", ours, naive, [*tensors, *attn.parameters()])


def peak_line(what: str, ours: Connect, theirs: Connect, held: Sequence[torch.Tensor]) -> Line:
    """Return the line of peak memory in MB of new tensors, without `held`, the inputs and weights."""
    peaks = []
    for call in (ours, theirs):
        with torch.no_grad(), TensorMemory() as memory:
            before = memory.hold(held)
            call()
        peaks.append((memory.peak - before) / 1e6)
    ratio = peaks[0] / peaks[1]
    spreads = [Spread.of([value]) for value in (*peaks, ratio)]
    return Line(what, "MB", spreads[0], spreads[2], spreads[1], Reach("at most", 1.0), {"calls": 1})


def _layer() -> torch.nn.Module:
    """Return the attention layer of a single block, with non-zero weights in its joint Linear."""
    ours, _ = networks()
    fill_adapter(ours)
    layer: torch.nn.Module = ours.single_transformer_blocks[0].attn
    return layer


def _tensors(tokens: int) -> tuple[torch.Tensor, ...]:
    """Return q, k, v (4, L, H, D), self-attention (4, L, C) and weights (4,)."""
    generator = torch.Generator().manual_seed(tokens)
    shape = (4, tokens + TEXT_TOKENS, CONFIG["num_attention_heads"], CONFIG["attention_head_dim"])
    query, key, value = torch.randn(3, *shape, generator=generator)
    attended = torch.randn(*shape[:2], width(), generator=generator)
    return query, key, value, attended, joint_weights(torch.tensor([0.3, 0.9, 0.8, 0.2]))


def _ours(attn: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> Connect:
    return lambda: attn.processor.connect(attn, *tensors)  # type: ignore[union-attr, operator]


def _naive(attn: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> Connect:
    """Split the batch, call attention twice, apply the joint Linear, concatenate the weighted sums."""
    query, key, value, attended, weights = tensors

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2).flatten(2)

    def connect() -> torch.Tensor:
        q_rgb, q_depth = query.chunk(2)
        k_rgb, k_depth = key.chunk(2)
        v_rgb, v_depth = value.chunk(2)
        o_rgb = attend(q_rgb, k_depth, v_depth)
        o_depth = attend(q_depth, k_rgb, v_rgb)
        joint = attn.joint_proj(torch.cat([o_rgb, o_depth], dim=-1))  # type: ignore[operator]
        joint_rgb, joint_depth = joint.chunk(2, dim=-1)
        weight_rgb, weight_depth = weights[:, None, None].chunk(2)
        self_rgb, self_depth = attended.chunk(2)
        return torch.cat([self_rgb + joint_rgb * weight_rgb, self_depth + joint_depth * weight_depth])

    return connect


def _side(connect: Connect) -> Side:
    def side() -> Turn:
        with torch.no_grad():
            seconds, output = timed(connect)
        return Turn(seconds, {"pairs": len(output) // 2, "numbers": output.numel()})

    return side
