"""Activation memory of a pipeline call by stage, measured on the meta device.

Inference stores nothing for gradients, so the largest set of live tensors counts:

    text     in one layer of T5
    encode   in the VAE's first layers, at the image's full resolution (tasks with an image or a map)
    denoise  in one block: the tokens of both halves, and in a single block q, k, v and 4 widths of MLP
    decode   in the VAE's last layers, at full resolution in float32; with FLUX's VAE by far the largest

It does not depend on the number of layers, so the measured model has one layer of each kind.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from jointdit.denoising import Task, denoise
from jointdit.model.latents import (
    decode_latents,
    encode_image,
    image_position_ids,
    pack_latents,
    text_position_ids,
    unpack_latents,
)
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.profiling.tensor_memory import FusedAttention, TensorMemory

META = torch.device("meta")
STEPS = 2  # the second step runs with the tensors that the first one leaves


@dataclass(frozen=True)
class Architecture:
    """The configs of a pipeline's components, which determine all sizes."""

    network: Mapping[str, Any]  # JointDiTTransformer2DModel's, lora_ranks included
    vae: Mapping[str, Any]
    clip: CLIPTextConfig
    t5: T5Config
    text_tokens: int  # of T5


@dataclass(frozen=True)
class Call:
    """The arguments of a pipeline call that affect memory. height, width: pixels."""

    task: Task
    batch: int
    height: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    condition_refresh: int = 1
    vae_tiling: bool = False
    vae_slicing: bool = False


@torch.no_grad()
def activation_bytes(architecture: Architecture, call: Call) -> dict[str, int]:
    """Return the peak bytes of each stage, without weights."""
    with torch.device("meta"):
        network, vae, clip, t5 = parts = _small_parts(architecture, call)
    factor = 2 ** (len(architecture.vae["block_out_channels"]) - 1)
    height, width = call.height // factor, call.width // factor  # of latents
    packed = (call.batch, height * width // 4, 4 * architecture.vae["latent_channels"])
    stages: dict[str, int] = {}
    with TensorMemory() as memory, FusedAttention():
        weights = memory.hold(itertools.chain(*(itertools.chain(part.parameters(), part.buffers()) for part in parts)))

        def ended(stage: str) -> None:
            stages[stage] = memory.peak - weights
            memory.restart_peak()

        pooled = clip(_ids(call.batch, architecture.clip.max_position_embeddings)).pooler_output
        states = t5(_ids(call.batch, architecture.text_tokens))[0]
        ended("text")
        noise = torch.empty(packed, device=META), torch.empty(packed, device=META)
        condition = None
        if call.task != "joint":
            pixels = torch.empty(call.batch, 3, call.height, call.width, device=META)
            condition = pack_latents(encode_image(vae, pixels))
            del pixels
            ended("encode")
        rgb, depth = denoise(
            network,
            call.task,
            noise,
            condition,
            prompt_embeds=states,
            pooled_prompt_embeds=pooled,
            img_ids=image_position_ids(height // 2, width // 2, META),
            txt_ids=text_position_ids(architecture.text_tokens, META),
            num_inference_steps=STEPS,
            condition_refresh=call.condition_refresh,
        )
        ended("denoise")
        if call.condition_refresh > 1:  # the cache keeps three tensors (B, L, C) per block
            tokens = packed[1] + architecture.text_tokens
            a_block = 3 * call.batch * tokens * network.inner_dim * call.dtype.itemsize
            stages["denoise"] += a_block * (_blocks(architecture.network) - _blocks(network.config))
        for latents, is_given in ((rgb, call.task == "depth"), (depth, call.task == "depth-to-image")):
            if not is_given:
                decode_latents(vae, unpack_latents(latents, height, width))
        ended("decode")
    return stages


def _blocks(config: Mapping[str, Any]) -> int:
    return int(config["num_layers"] + config["num_single_layers"])


def _ids(batch: int, tokens: int) -> torch.Tensor:
    return torch.empty(batch, tokens, dtype=torch.int64, device=META)


def _small_parts(architecture: Architecture, call: Call) -> tuple[Any, AutoencoderKL, Any, Any]:
    """Build the components with their real widths and one layer of each kind."""
    settings = dict(architecture.network)
    for name in ("num_layers", "num_single_layers"):
        settings[name] = min(1, settings[name])
    ranks = settings.get("lora_ranks")
    if isinstance(ranks, Mapping):
        settings["lora_ranks"] = {name: rank for name, rank in ranks.items() if "_blocks." not in name}
    clip_config, t5_config = copy.deepcopy(architecture.clip), copy.deepcopy(architecture.t5)
    clip_config.num_hidden_layers = t5_config.num_layers = 1
    network = torch.nn.Module.to(
        JointDiTTransformer2DModel(**settings).eval(), call.dtype
    )  # diffusers' own logs a line
    vae = AutoencoderKL.from_config(dict(architecture.vae)).eval()
    if call.vae_tiling:
        vae.enable_tiling()
    if call.vae_slicing:
        vae.enable_slicing()
    return (
        network,
        vae,
        CLIPTextModel(clip_config).eval().to(call.dtype),
        T5EncoderModel(t5_config).eval().to(call.dtype),
    )
