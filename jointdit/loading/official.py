"""Convert published checkpoints in Black Forest Labs' layout to ours and back, bit for bit.

A published model consists of two safetensors files: the base network (FLUX.1 as released) and JointDiT's adapter (LoRA
and joint Linears). Each official tensor is the concatenation of one or more of our tensors on dimension 0. A
`TensorMap` lists them.

diffusers has a converter for the base, but only in one direction, for 3072 channels and without an adapter.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file

from jointdit.loading.checkpoint_files import FilePath, check_tensors, tensor_shapes
from jointdit.model.depth_lora import ADAPTER_NAME

TensorMap = dict[str, tuple[str, ...]]
BASE_ADVICE = "give the base network that `config` describes"

# BFL's order in the last modulation is (shift, scale), diffusers' is (scale, shift).
SWAPPED_MODULE = "final_layer.adaLN_modulation.1"

# Prefix of the network's tensors in files of other programs, which may also hold text encoders.
NETWORK_PREFIX = "model.diffusion_model."

_LORA_INPUT_LAYERS = ("vector_in.in_layer", "vector_in.out_layer", "txt_in")
_LORA_BLOCK_LAYERS = ("_mod.lin", "_attn.qkv", "_attn.proj", ".linear1", ".modulation.lin")


def official_modules(num_layers: int, num_single_layers: int, guidance_embeds: bool) -> TensorMap:
    """Map official module names to the diffusers modules that they fuse, in order."""
    modules: TensorMap = {"img_in": ("x_embedder",), "txt_in": ("context_embedder",)}
    embedders = {"time_in": "timestep_embedder", "vector_in": "text_embedder"}
    if guidance_embeds:
        embedders["guidance_in"] = "guidance_embedder"
    for official, ours in embedders.items():
        modules[f"{official}.in_layer"] = (f"time_text_embed.{ours}.linear_1",)
        modules[f"{official}.out_layer"] = (f"time_text_embed.{ours}.linear_2",)

    for index in range(num_layers):
        official, ours = f"double_blocks.{index}", f"transformer_blocks.{index}"
        modules[f"{official}.img_mod.lin"] = (f"{ours}.norm1.linear",)
        modules[f"{official}.img_attn.qkv"] = tuple(f"{ours}.attn.{name}" for name in ("to_q", "to_k", "to_v"))
        modules[f"{official}.img_attn.norm.query_norm"] = (f"{ours}.attn.norm_q",)
        modules[f"{official}.img_attn.norm.key_norm"] = (f"{ours}.attn.norm_k",)
        modules[f"{official}.img_attn.proj"] = (f"{ours}.attn.to_out.0",)
        modules[f"{official}.img_mlp.0"] = (f"{ours}.ff.net.0.proj",)
        modules[f"{official}.img_mlp.2"] = (f"{ours}.ff.net.2",)
        modules[f"{official}.txt_mod.lin"] = (f"{ours}.norm1_context.linear",)
        modules[f"{official}.txt_attn.qkv"] = tuple(f"{ours}.attn.add_{name}_proj" for name in ("q", "k", "v"))
        modules[f"{official}.txt_attn.norm.query_norm"] = (f"{ours}.attn.norm_added_q",)
        modules[f"{official}.txt_attn.norm.key_norm"] = (f"{ours}.attn.norm_added_k",)
        modules[f"{official}.txt_attn.proj"] = (f"{ours}.attn.to_add_out",)
        modules[f"{official}.txt_mlp.0"] = (f"{ours}.ff_context.net.0.proj",)
        modules[f"{official}.txt_mlp.2"] = (f"{ours}.ff_context.net.2",)

    for index in range(num_single_layers):
        official, ours = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        modules[f"{official}.linear1"] = (
            *(f"{ours}.attn.{name}" for name in ("to_q", "to_k", "to_v")),
            f"{ours}.proj_mlp",
        )
        modules[f"{official}.linear2"] = (f"{ours}.proj_out",)
        modules[f"{official}.norm.query_norm"] = (f"{ours}.attn.norm_q",)
        modules[f"{official}.norm.key_norm"] = (f"{ours}.attn.norm_k",)
        modules[f"{official}.modulation.lin"] = (f"{ours}.norm.linear",)

    modules["final_layer.linear"] = ("proj_out",)
    modules[SWAPPED_MODULE] = ("norm_out.linear",)
    return modules


def lora_groups(num_layers: int, num_single_layers: int) -> TensorMap:
    """Map official names of the layers with LoRA to diffusers' Linears that share its A.

    img_in, time_in, guidance_in, the MLPs of double blocks, linear2 and final_layer have no LoRA.
    """
    modules = official_modules(num_layers, num_single_layers, guidance_embeds=False)
    return {
        name: ours
        for name, ours in modules.items()
        if name in _LORA_INPUT_LAYERS or ("_blocks." in name and name.endswith(_LORA_BLOCK_LAYERS))
    }


def base_tensors(num_layers: int, num_single_layers: int, guidance_embeds: bool) -> TensorMap:
    """Map official tensor names of the base network to tensor names of diffusers' FluxTransformer2DModel."""
    tensors: TensorMap = {}
    for official, ours in official_modules(num_layers, num_single_layers, guidance_embeds).items():
        if official.endswith("_norm"):
            tensors[f"{official}.scale"] = tuple(f"{name}.weight" for name in ours)
        else:
            tensors[f"{official}.weight"] = tuple(f"{name}.weight" for name in ours)
            tensors[f"{official}.bias"] = tuple(f"{name}.bias" for name in ours)
    return tensors


def adapter_tensors(num_layers: int, num_single_layers: int) -> TensorMap:
    """Map official tensor names of the adapter to ours: 500 tensors at FLUX.1's size."""
    tensors: TensorMap = {}
    for official, ours in lora_groups(num_layers, num_single_layers).items():
        tensors[f"{official}.lora_A.weight"] = (f"{ours[0]}.lora_A.{ADAPTER_NAME}.weight",)
        tensors[f"{official}.lora_B.weight"] = tuple(f"{name}.lora_B.{ADAPTER_NAME}.weight" for name in ours)
    joints = {f"double_blocks.{i}.joint1": f"transformer_blocks.{i}.attn.joint_proj" for i in range(num_layers)}
    joints |= {
        f"single_blocks.{i}.joint2": f"single_transformer_blocks.{i}.attn.joint_proj" for i in range(num_single_layers)
    }
    for official, name in joints.items():
        tensors[f"{official}.weight"] = (f"{name}.weight",)
        tensors[f"{official}.bias"] = (f"{name}.bias",)
    return tensors


def official_shapes(path: FilePath) -> tuple[str, dict[str, tuple[int, ...]]]:
    """Return the prefix of a file's official names, and the shapes by name without it. Raises ModelError."""
    shapes = tensor_shapes(path)
    if not any(name.startswith(NETWORK_PREFIX) for name in shapes):
        return "", shapes
    inside = {name: shape for name, shape in shapes.items() if name.startswith(NETWORK_PREFIX)}
    return NETWORK_PREFIX, {name.removeprefix(NETWORK_PREFIX): shape for name, shape in inside.items()}


def official_settings(path: FilePath, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of diffusers' FluxTransformer2DModel for a base file, with the guidance embedding it has.

    Entries of `config` take precedence. Raises ModelError if the file is not safetensors.
    """
    return {"guidance_embeds": "guidance_in.in_layer.weight" in official_shapes(path)[1], **config}


def config_names() -> set[str]:
    """Return the argument names of diffusers' FluxTransformer2DModel."""
    return set(inspect.signature(FluxTransformer2DModel.__init__).parameters) - {"self"}


def read_flux(
    path: FilePath,
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> FluxTransformer2DModel:
    """Read a base file into diffusers' FLUX, tensor by tensor to the device.

    config: arguments of FluxTransformer2DModel, others are ignored; its defaults are FLUX.1-dev's. dtype: None keeps
    the file's. Raises ModelError if the file does not fit.
    """
    given = {name: value for name, value in config.items() if name in config_names()}
    with torch.device("meta"):
        flux = FluxTransformer2DModel(**official_settings(path, given))
    tensors = base_tensors(flux.config.num_layers, flux.config.num_single_layers, flux.config.guidance_embeds)
    shapes = {name: tuple(parameter.shape) for name, parameter in flux.named_parameters()}
    flux.load_state_dict(read_official(path, tensors, shapes, BASE_ADVICE, dtype, device), assign=True)
    return flux.eval()


def check_official(path: FilePath, tensors: TensorMap, shapes: Mapping[str, tuple[int, ...]], advice: str) -> str:
    """Check the header of an official file against our tensors' shapes, and return the prefix of its names.

    Raises ModelError if it does not fit.
    """
    fused = {name: _fused_shape([shapes[part] for part in ours]) for name, ours in tensors.items()}
    prefix, found = official_shapes(path)
    check_tensors(path, found, fused, advice)
    return prefix


def read_official(
    path: FilePath,
    tensors: TensorMap,
    shapes: Mapping[str, tuple[int, ...]],
    advice: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, torch.Tensor]:
    """Read an official file into our names, one tensor at a time.

    shapes: of our tensors; the file is checked against them first. dtype: None keeps the file's. device: None is the
    CPU, where a tensor that keeps its dtype stays memory-mapped. Raises ModelError if the file is not safetensors or
    does not fit.
    """
    prefix = check_official(path, tensors, shapes, advice)
    state: dict[str, torch.Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for official, ours in tensors.items():
            rows = file.get_slice(prefix + official)
            start = 0
            for name in ours:
                stop = start + shapes[name][0]
                tensor = rows[start:stop].to(device=device, dtype=dtype)
                state[name] = _swap_if_needed(official, tensor)
                start = stop
    return state


def gather_official(state: Mapping[str, torch.Tensor], tensors: TensorMap) -> dict[str, torch.Tensor]:
    """Return our tensors in official names and shapes; the inverse of `read_official`."""
    return {
        official: _swap_if_needed(official, torch.cat([state[name] for name in ours]))
        for official, ours in tensors.items()
    }


def write_official(path: FilePath, tensors: dict[str, torch.Tensor]) -> None:
    """Write official tensors as one safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _fused_shape(parts: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in parts), *parts[0][1:])


def _swap_if_needed(official: str, tensor: torch.Tensor) -> torch.Tensor:
    if not official.startswith(SWAPPED_MODULE):
        return tensor
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
