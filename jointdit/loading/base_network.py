"""Load the FLUX base network of an adapter, from a folder or a single file.

A single file (`flux1-dev.safetensors`) holds only the transformer. VAE, text encoders and tokenizers then come from
`components`, a FLUX pipeline folder. The config.json of its transformer, if any, gives the shape of the network;
otherwise the network has FLUX.1's shape. The tensors of the file decide whether there is a guidance embedding (dev,
Krea) or not (schnell).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from jointdit.errors import ModelError
from jointdit.loading import official
from jointdit.loading.base_loras import BaseLora, fuse_loras
from jointdit.loading.checkpoint_files import FilePath, load_component, wrap_load_errors
from jointdit.model.transformer import JointDiTTransformer2DModel

COMPONENTS_ADVICE = "give components, a FLUX pipeline folder with VAE, text encoders and tokenizers"


def is_single_file(base: FilePath) -> bool:
    """Whether a base is a single file in Black Forest Labs' layout."""
    return Path(base).is_file() or Path(base).suffix == ".safetensors"


def load_base(
    base: FilePath,
    adapter: FilePath | None,
    components: FilePath | None,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    base_loras: Sequence[BaseLora] = (),
    **options: Any,
) -> JointDiTTransformer2DModel:
    """Load a base network, tensor by tensor to the device, fuse LoRAs into it, and build JointDiT from it.

    On a CPU, tensors that keep their stored type stay memory-mapped. options: of from_pretrained, such as
    quantization_config. Raises ModelError if the files do not fit.
    """
    if base_loras and "quantization_config" in options:
        raise ModelError("base_loras cannot be fused into quantised weights: do not quantise the transformer.")
    if is_single_file(base):
        if options:
            raise ModelError(
                f"{base}: a single file cannot be loaded with {', '.join(options)}: save the base as a folder in "
                "diffusers' layout, or do not quantise the transformer."
            )
        flux = official.read_flux(base, _shape_beside(components), dtype, device)
    else:
        flux = load_component(FluxTransformer2DModel, transformer_folder(base), dtype, device, **options)
    fuse_loras(flux, base_loras)
    return JointDiTTransformer2DModel.from_flux(flux, adapter)


def single_file_network(base: FilePath, components: FilePath | None) -> FluxTransformer2DModel:
    """Return the network of a single file on the meta device, after a check of the file's names and shapes.

    Raises ModelError if they do not fit.
    """
    with torch.device("meta"):
        flux = FluxTransformer2DModel(**official.official_settings(base, _shape_beside(components)))
    config = flux.config
    tensors = official.base_tensors(config.num_layers, config.num_single_layers, config.guidance_embeds)
    shapes = {name: tuple(parameter.shape) for name, parameter in flux.named_parameters()}
    official.check_official(base, tensors, shapes, official.BASE_ADVICE)
    return flux


def transformer_folder(base: FilePath) -> Path:
    """Return the transformer's folder: `transformer` in a pipeline, or the base itself. Raises ModelError."""
    folder = Path(base)
    if (folder / "transformer").is_dir():
        return folder / "transformer"
    if (folder / "config.json").is_file():
        return folder
    files = sorted(folder.glob("*.safetensors"))
    advice = f"name the file {files[0].name} itself and {COMPONENTS_ADVICE}" if files else "give a FLUX pipeline folder"
    raise ModelError(f"{folder}: it has no folder transformer and no config.json, {advice}.")


def _shape_beside(components: FilePath | None) -> dict[str, Any]:
    """Return FLUX's settings from the config of the components' own transformer; empty if there is none."""
    folder = Path(components or "") / "transformer"
    if components is None or not (folder / "config.json").is_file():
        return {}
    with wrap_load_errors(f"{folder}: its config.json does not describe a FluxTransformer2DModel"):
        given = FluxTransformer2DModel.load_config(folder)
    return {name: value for name, value in given.items() if name in official.config_names() - {"guidance_embeds"}}
