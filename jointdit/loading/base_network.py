"""The FLUX network that an adapter is put on: a folder in diffusers' layout, or a single file in Black Forest Labs'.

A single file (`flux1-dev.safetensors`) holds the transformer alone. VAE, text encoders and tokenizers then come from
`components`, a FLUX pipeline folder, whose transformer's config.json also tells an unusual network's shape; without
one the network is FLUX.1's. Whether there is a guidance embedding (dev, Krea) or none (schnell) the file itself tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from jointdit.errors import ModelError
from jointdit.loading import official
from jointdit.loading.checkpoint_files import FilePath, load_component, told_as_model_error
from jointdit.model.transformer import BASE_ADVICE, JointDiTTransformer2DModel, config_names

COMPONENTS_ADVICE = "give components, a FLUX pipeline folder whose VAE, text encoders and tokenizers are used"


def is_single_file(base: FilePath) -> bool:
    """Whether a base is one file in Black Forest Labs' layout."""
    return Path(base).is_file() or Path(base).suffix == ".safetensors"


def load_base(
    base: FilePath,
    adapter: FilePath | None,
    components: FilePath | None,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    **options: Any,
) -> JointDiTTransformer2DModel:
    """JointDiT's network around a base, whose tensors are read one by one to the device.

    On a CPU, and in the type they are stored in, they stay mapped from their file. options: of from_pretrained, such
    as quantization_config. Raises ModelError for what does not fit.
    """
    if is_single_file(base):
        if options:
            raise ModelError(
                f"{base}: a single file cannot be read with {', '.join(options)}: save the base as a folder in "
                "diffusers' layout, or leave the transformer out of it."
            )
        return JointDiTTransformer2DModel.from_official(
            base, adapter, config=_shape_beside(components), torch_dtype=dtype, device=device
        )
    flux = load_component(FluxTransformer2DModel, transformer_folder(base), dtype, device, **options)
    return JointDiTTransformer2DModel.from_flux(flux, adapter)


def single_file_network(base: FilePath, components: FilePath | None) -> FluxTransformer2DModel:
    """The network that a single file holds, on the meta device, after its names and shapes were found in the file.

    Raises ModelError where they do not fit.
    """
    with torch.device("meta"):
        flux = FluxTransformer2DModel(**official.official_settings(base, _shape_beside(components)))
    config = flux.config
    tensors = official.base_tensors(config.num_layers, config.num_single_layers, config.guidance_embeds)
    shapes = {name: tuple(parameter.shape) for name, parameter in flux.named_parameters()}
    official.check_official(base, tensors, shapes, BASE_ADVICE)
    return flux


def transformer_folder(base: FilePath) -> Path:
    """The folder of a base's network: `transformer` of a pipeline, or the folder itself. Raises ModelError."""
    folder = Path(base)
    if (folder / "transformer").is_dir():
        return folder / "transformer"
    if (folder / "config.json").is_file():
        return folder
    files = sorted(folder.glob("*.safetensors"))
    advice = f"name the file {files[0].name} itself and {COMPONENTS_ADVICE}" if files else "give a FLUX pipeline folder"
    raise ModelError(f"{folder}: there is no folder transformer and no config.json in it, {advice}.")


def _shape_beside(components: FilePath | None) -> dict[str, Any]:
    """FLUX's keys of the components' own transformer; empty where they have none."""
    folder = Path(components or "") / "transformer"
    if components is None or not (folder / "config.json").is_file():
        return {}
    with told_as_model_error(f"{folder}: its config.json does not describe a FluxTransformer2DModel"):
        given = FluxTransformer2DModel.load_config(folder)
    return {name: value for name, value in given.items() if name in config_names() - {"guidance_embeds"}}
