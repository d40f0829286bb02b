"""Check a checkpoint folder from the headers of its files: names and shapes of tensors.

No weights are loaded. The driver of a job runs this check before it writes to the output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, T5Config

from jointdit.errors import ModelError
from jointdit.loading.base_loras import check_lora
from jointdit.loading.base_network import COMPONENTS_ADVICE, is_single_file, single_file_network, transformer_folder
from jointdit.loading.checkpoint_files import (
    FilePath,
    check_tensors,
    folder_tensor_shapes,
    load_tokenizer,
    wrap_load_errors,
)
from jointdit.loading.schedulers import load_scheduler
from jointdit.model.transformer import JointDiTTransformer2DModel, check_adapter


def check_checkpoint(
    folder: FilePath,
    adapter: FilePath | None = None,
    components: FilePath | None = None,
    base_loras: Sequence[FilePath] = (),
) -> None:
    """Check a pipeline folder: each tensor of transformer and VAE, and that the other components exist.

    adapter: a published adapter for the folder's FLUX network. `folder` may then be a single file in Black Forest
    Labs' layout, or hold a transformer alone. components: the folder of all other components. base_loras: LoRAs that
    are fused into the FLUX network.

    Raises:
        ModelError: a file or tensor is missing, has the wrong shape, or is not safetensors; the message names it.
    """
    whole = Path(folder if components is None else components)
    if adapter is not None and is_single_file(folder) and components is None:
        raise ModelError(f"{folder}: a single file holds only the transformer, {COMPONENTS_ADVICE}.")
    if not (whole / "model_index.json").is_file():
        raise ModelError(f"{whole}: model_index.json is missing, give the folder of a whole pipeline.")
    if adapter is None:
        _check_tensors(JointDiTTransformer2DModel, Path(folder) / "transformer")
    else:
        if is_single_file(folder):
            network = single_file_network(folder, components)
        else:
            network = _check_tensors(FluxTransformer2DModel, transformer_folder(folder))
        check_adapter(adapter, network.config)
    for lora in base_loras:
        check_lora(lora)
    folder = whole
    if components is None:
        with wrap_load_errors(f"{folder / 'model_index.json'} is not valid JSON"):
            index = dict(json.loads((folder / "model_index.json").read_text()))
        load_scheduler(folder, index)
    _check_tensors(AutoencoderKL, folder / "vae")
    for name, kind in (("text_encoder", CLIPTextConfig), ("text_encoder_2", T5Config)):
        folder_tensor_shapes(folder / name)
        with wrap_load_errors(f"{folder / name}: its config.json does not describe a {kind.__name__}"):
            kind.from_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        load_tokenizer(folder / name)


def _check_tensors(kind: Any, folder: Path) -> Any:
    """Return the model of a folder on the meta device, after a check of the tensors in the folder's files."""
    shapes = folder_tensor_shapes(folder)
    with (
        wrap_load_errors(f"{folder}: its config.json does not describe a {kind.__name__}"),
        torch.device("meta"),
    ):
        model = kind.from_config(kind.load_config(folder))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    known = {name: shape for name, shape in shapes.items() if name in expected}  # files may have further tensors
    check_tensors(folder, known, expected, "download or save it again")
    return model
