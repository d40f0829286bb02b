"""Convert FLUX's autoencoder (`ae.safetensors`) to diffusers' AutoencoderKL and back.

The layouts differ in names, in the order of the decoder's levels, and in the attention projections (1x1 convolutions in
BFL's, Linears in diffusers'). The architecture is read from the shapes in the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from jointdit.errors import ModelError
from jointdit.loading.checkpoint_files import FilePath, check_tensors, tensor_shapes
from jointdit.loading.official import write_official

FLUX_SCALING_FACTOR = 0.3611
FLUX_SHIFT_FACTOR = 0.1159

_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def official_vae_modules(levels: int, layers_per_block: int) -> dict[str, str]:
    """Map official module names to diffusers'. Includes a shortcut for each block, of which only some exist."""
    modules: dict[str, str] = {}

    def add_resnet(official: str, ours: str) -> None:
        modules.update({f"{official}.{theirs}": f"{ours}.{name}" for theirs, name in _RESNET.items()})

    for side in ("encoder", "decoder"):
        modules[f"{side}.conv_in"] = f"{side}.conv_in"
        modules[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        modules[f"{side}.conv_out"] = f"{side}.conv_out"
        add_resnet(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0")
        add_resnet(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1")
        attention = f"{side}.mid_block.attentions.0"
        modules.update({f"{side}.mid.attn_1.{theirs}": f"{attention}.{name}" for theirs, name in _ATTENTION.items()})

    for level in range(levels):
        for block in range(layers_per_block):
            add_resnet(f"encoder.down.{level}.block.{block}", f"encoder.down_blocks.{level}.resnets.{block}")
        modules[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        ours = levels - 1 - level  # BFL numbers the decoder's levels from fine to coarse
        for block in range(layers_per_block + 1):
            add_resnet(f"decoder.up.{level}.block.{block}", f"decoder.up_blocks.{ours}.resnets.{block}")
        modules[f"decoder.up.{level}.upsample.conv"] = f"decoder.up_blocks.{ours}.upsamplers.0.conv"
    return modules


def vae_from_official(
    path: FilePath,
    torch_dtype: torch.dtype | None = None,
    scaling_factor: float = FLUX_SCALING_FACTOR,
    shift_factor: float = FLUX_SHIFT_FACTOR,
) -> AutoencoderKL:
    """Load a BFL autoencoder. torch_dtype: None keeps the file's. Raises ModelError for other files."""
    shapes = tensor_shapes(path)
    config = _config_from_shapes(path, shapes)
    with torch.device("meta"):
        vae = AutoencoderKL(**config, scaling_factor=scaling_factor, shift_factor=shift_factor)
    expected = {name: (ours, tuple(vae.get_parameter(ours).shape)) for name, ours in _tensor_names(vae).items()}
    check_tensors(
        path,
        shapes,
        {name: shape + _trailing_ones(name) for name, (_, shape) in expected.items()},
        "give FLUX's ae.safetensors",
    )
    tensors = load_file(path)
    state = {ours: tensors[name].reshape(shape) for name, (ours, shape) in expected.items()}
    if torch_dtype is not None:
        state = {name: tensor.to(torch_dtype) for name, tensor in state.items()}
    vae.load_state_dict(state, assign=True)
    return vae.eval()


def vae_to_official(vae: AutoencoderKL, path: FilePath | None = None) -> dict[str, torch.Tensor]:
    """Return the state dict in BFL's layout, and write it to path if given.

    Raises ModelError for an autoencoder with a quant_conv, which the layout does not have.
    """
    state = vae.state_dict()
    names = _tensor_names(vae)
    nameless = sorted(set(state) - set(names.values()))
    if nameless:
        raise ModelError(f"The VAE's {nameless[0]} has no name in BFL's layout: save it with save_pretrained.")
    official = {}
    for name, ours in names.items():
        tensor = state[ours]
        official[name] = tensor.reshape(tuple(tensor.shape) + _trailing_ones(name))
    if path is not None:
        write_official(path, official)
    return official


def _tensor_names(vae: AutoencoderKL) -> dict[str, str]:
    """Map official tensor names to diffusers', for the tensors of this autoencoder."""
    ours = set(vae.state_dict())
    return {
        f"{official}.{kind}": f"{name}.{kind}"
        for official, name in official_vae_modules(
            len(vae.config.block_out_channels), vae.config.layers_per_block
        ).items()
        for kind in ("weight", "bias")
        if f"{name}.{kind}" in ours
    }


def _trailing_ones(official_name: str) -> tuple[int, ...]:
    """Return the kernel size (1, 1) for an attention projection, a convolution in BFL's layout; else nothing."""
    is_projection = ".attn_1." in official_name and ".norm." not in official_name
    return (1, 1) if is_projection and official_name.endswith(".weight") else ()


def _config_from_shapes(path: FilePath, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise ModelError(f"{path}: tensor {name} is missing, give FLUX's ae.safetensors.")
        return shapes[name]

    levels = sum(f"encoder.down.{level}.block.0.conv1.weight" in shapes for level in range(32))
    layers = sum(f"encoder.down.0.block.{block}.conv1.weight" in shapes for block in range(32))
    return {
        "in_channels": shape("encoder.conv_in.weight")[1],
        "out_channels": shape("decoder.conv_out.weight")[0],
        "latent_channels": shape("encoder.conv_out.weight")[0] // 2,
        "block_out_channels": tuple(shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": layers,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
