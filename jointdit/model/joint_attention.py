"""Attention with the joint connection between the halves.

The output is the self-attention of each half plus weighted cross-attention between the halves. Shapes: B pairs, L
tokens (text then image), H heads, D head width, C = H * D. The batch is `[rgb x B; depth x B]`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn
from torch.nn import functional

from jointdit.model.condition_cache import KeptAttention

JOINT_WEIGHT_SHARPNESS = 3.0  # alpha of the adaptive scheduling weights in the paper


def joint_weights(timestep: torch.Tensor, sharpness: float = JOINT_WEIGHT_SHARPNESS) -> torch.Tensor:
    """Return the weight of the cross-attention in each half: noise levels (2B,) -> weights (2B,) float32.

    The weight is sigmoid(alpha (t_own / (t_rgb + t_depth) - 1/2)) with sharpness alpha = 3, so the noisier half gets
    the larger weight (paper). With alpha = 0, the baseline of the ablation, all weights are 1/2. They are also 1/2 if
    both halves are clean, where the authors' code returns NaN.
    """
    t_rgb, t_depth = timestep.float().chunk(2)
    total = t_rgb + t_depth
    rgb_share = torch.where(total > 0, t_rgb / torch.where(total > 0, total, 1.0), 0.5)
    share = torch.cat([rgb_share, 1 - rgb_share])
    return torch.sigmoid(sharpness * (share - 0.5))


class JointProjection(nn.Linear):
    """The learned part of the joint connection, (B, L, 2C) -> (B, L, 2C), initialised to zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero; nn.Linear calls this in its constructor."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor, source: int | None = None, target: int | None = None) -> torch.Tensor:
        """Project x (B, L, 2C) in the weight's precision, which may be higher than the base network's in training.

        With source and target (0 for RGB, 1 for depth), x is the result of the source half alone, (B, L, C), and the
        return value its contribution to the target's output, (B, L, C). Both contributions sum to the full projection;
        the cross term carries the bias.
        """
        if source is None or target is None:
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)
        width = x.shape[-1]
        rows, columns = (slice(half * width, (half + 1) * width) for half in (target, source))
        bias = self.bias[rows] if source != target else None
        return functional.linear(x.to(self.weight.dtype), self.weight[rows, columns], bias).to(x.dtype)


def add_joint_connection(attn: FluxAttention) -> None:
    """Add the joint projection and its processor to an attention layer of width C."""
    width, reference = 2 * attn.inner_dim, attn.norm_q.weight
    attn.joint_proj = JointProjection(width, width, device=reference.device, dtype=reference.dtype)
    attn.set_processor(JointFluxAttnProcessor())


class JointFluxAttnProcessor:
    """diffusers' FluxAttnProcessor with the joint connection before the output projection.

    After QK-norm and RoPE the RGB queries attend to the depth keys and values, and the depth queries to those of RGB.
    The two results are concatenated on channels and projected by the joint Linear. The cross-attention is one call per
    half: a single call over the batch needs a copy of k and v with swapped halves, which took 5 % of the time of the
    call with 1,088 tokens and 20 % with 320.
    """

    # diffusers sets these two from outside (set_attention_backend, enable_parallelism).
    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_weights: torch.Tensor | None = None,
        condition: KeptAttention | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend within and between the halves.

        Args:
            hidden_states: (2B, N, C) image tokens in double blocks, (2B, L, C) all tokens in single blocks.
            encoder_hidden_states: (2B, T, C) text tokens, in double blocks only.
            attention_mask: (2B, 1, 1, L), True where a token of the row is attended to. Cross-attention uses the mask
                of the half that its keys come from.
            joint_weights: (2B,), see `joint_weights`.
            condition: cache of the clean half. If it is filled, all tensors hold the generated half only, B rows; if
                it is empty, this call fills it.

        Returns:
            (2B, L, C) in single blocks, (image, text) of (2B, N, C) and (2B, T, C) in double blocks.
        """
        assert joint_weights is not None
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (-1, attn.head_dim)))
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(-1, (-1, attn.head_dim)))
        value = attn.to_v(hidden_states).unflatten(-1, (-1, attn.head_dim))

        if encoder_hidden_states is not None:
            text_query = attn.norm_added_q(attn.add_q_proj(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim)))
            text_key = attn.norm_added_k(attn.add_k_proj(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim)))
            text_value = attn.add_v_proj(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim))
            query = torch.cat([text_query, query], dim=1)
            key = torch.cat([text_key, key], dim=1)
            value = torch.cat([text_value, value], dim=1)

        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)

        attended = self._attend(query, key, value, attention_mask)
        if condition is not None and condition.key is not None and condition.value is not None:
            cross_attended = self._attend(query, condition.key, condition.value, condition.mask)
            half = condition.generated
            joint = condition.joint + attn.joint_proj(cross_attended, source=half, target=half)  # (B, L, C)
            attended = torch.addcmul(attended, joint, joint_weights.to(joint.dtype)[:, None, None])
        else:
            attended = self.connect(attn, query, key, value, attended, joint_weights, attention_mask, condition)

        if encoder_hidden_states is None:
            return attended
        text_tokens = encoder_hidden_states.shape[1]
        image_output = attn.to_out[1](attn.to_out[0](attended[:, text_tokens:].contiguous()))
        text_output = attn.to_add_out(attended[:, :text_tokens].contiguous())
        return image_output, text_output

    def connect(
        self,
        attn: FluxAttention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        self_attended: torch.Tensor,
        joint_weights: torch.Tensor,
        mask: torch.Tensor | None = None,
        condition: KeptAttention | None = None,
    ) -> torch.Tensor:
        """Add the weighted cross-attention to the self-attention (2B, L, C); query, key, value are (2B, L, H, D)."""
        masks = (None, None) if mask is None else mask.chunk(2)
        halves = zip(query.chunk(2), *(reversed(each) for each in (key.chunk(2), value.chunk(2), masks)), strict=True)
        crossed = [self._attend(*half) for half in halves]
        joint = attn.joint_proj(torch.cat(crossed, dim=-1))  # (B, L, 2C): [rgb, depth] on channels
        if condition is not None:
            # Copied, because views would keep the other half in memory.
            condition.key, condition.value = (x.chunk(2)[condition.given].clone() for x in (key, value))
            condition.mask = masks[condition.given]
            condition.joint = attn.joint_proj(
                crossed[condition.given], source=condition.given, target=condition.generated
            )
        halves_first = joint.unflatten(-1, (2, -1)).movedim(-2, 0)  # (2, B, L, C), a view
        weights = joint_weights.to(joint.dtype).view(2, -1, 1, 1)
        return torch.addcmul(self_attended.unflatten(0, (2, -1)), halves_first, weights).flatten(0, 1)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend with query, key, value (B, L, H, D) each; returns (B, L, C)."""
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended_blc: torch.Tensor = attended.flatten(2, 3).to(query.dtype)
        return attended_blc
