"""Fuse LoRAs of FLUX into a base network by diffusers' loader: styles, or few steps (Hyper-FLUX, turbo).

Both halves of JointDiT use the base, so a LoRA must be in its weights before the adapter is put on. A LoRA of the text
encoder and the kinds that diffusers only loads in part are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from peft import get_peft_model_state_dict

from jointdit.errors import ModelError
from jointdit.loading.checkpoint_files import FilePath, tensor_shapes, wrap_load_errors

BaseLora = tuple[FilePath, float]  # a local safetensors file, and the scale of its LoRA
ADAPTER_NAME = "base_lora"
PREFIX = "transformer."
_TEXT_ENCODERS = ("text_encoder", "lora_te", "te1", "te2")
_NETWORK_KINDS = ("dora_scale", "hada_w", "lokr_w", "diff_b", "oft_")  # DoRA, LoHa, LoKr, weight differences, OFT


def check_lora(path: FilePath) -> None:
    """Check the header of a LoRA file. Raises ModelError if it cannot be fused as a whole."""
    names = tensor_shapes(path)
    if not any("lora" in name for name in names):
        raise ModelError(f"{path}: it has no tensor of a LoRA, give the safetensors file of a LoRA of FLUX.")
    for name in names:
        if name.startswith(_TEXT_ENCODERS):
            raise ModelError(f"{path}: tensor {name} is of a text encoder, and only the transformer takes LoRAs.")
        if any(kind in name for kind in _NETWORK_KINDS):
            raise ModelError(f"{path}: tensor {name} is of no plain LoRA, give a LoRA with A and B alone.")


@torch.no_grad()
def fuse_loras(flux: FluxTransformer2DModel, loras: Sequence[BaseLora]) -> None:
    """Add LoRAs to the weights of a FLUX network in place, in this order.

    Raises:
        ModelError: a file is no LoRA of this network, or a tensor of it has no layer.
    """
    for path, scale in loras:
        if not math.isfinite(scale):
            raise ModelError(f"{path}: its scale is {scale}, give a finite number.")
        check_lora(path)
        with wrap_load_errors(f"{path}: cannot be fused into FLUX"):
            _fuse(flux, path, scale)


def _fuse(flux: FluxTransformer2DModel, path: FilePath, scale: float) -> None:
    state, alphas, metadata = FluxLoraLoaderMixin.lora_state_dict(
        str(path), return_alphas=True, return_lora_metadata=True
    )
    others = sorted(name for name in state if not (name.startswith(PREFIX) and "lora" in name))
    if others:
        raise ModelError(f"{path}: tensor {others[0]} is not of a LoRA of FLUX's transformer, give another file.")
    FluxLoraLoaderMixin.load_lora_into_transformer(
        dict(state), network_alphas=alphas, transformer=flux, adapter_name=ADAPTER_NAME, metadata=metadata
    )
    loaded = get_peft_model_state_dict(flux, adapter_name=ADAPTER_NAME)
    if len(loaded) != len(state):
        missing = sorted({name.removeprefix(PREFIX) for name in state} - set(loaded))
        raise ModelError(f"{path}: tensor {missing[0]} ({len(missing)} in all) has no layer in this network.")
    flux.fuse_lora(lora_scale=scale, safe_fusing=True)
    flux.unload_lora()
