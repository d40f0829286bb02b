"""Weight files: safetensors only, checked by name and shape before anything is loaded.

The loaders of diffusers and transformers initialise a tensor that a file lacks with random numbers and go on with a
log line. Here that is an error, and so is a pickled file, which can run code when it is loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jointdit.errors import ModelError

FilePath = str | os.PathLike[str]


def tensor_shapes(path: FilePath) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, read from its header. Raises ModelError where it is not one."""
    path = Path(path)
    if not path.exists():
        raise ModelError(f"{path}: there is no such file, give the path of a safetensors file.")
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: weights load from .safetensors only (pickled files can run code), convert it first.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}), download or convert it again.") from error


def check_tensors(
    path: FilePath, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], advice: str
) -> None:
    """Raise ModelError naming the first tensor that is missing, misshapen or unknown; advice ends the message."""
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"{path}: tensor {name} of shape {shape} is missing, {advice}.")
        if found[name] != shape:
            raise ModelError(f"{path}: tensor {name} has shape {found[name]} but the network needs {shape}, {advice}.")
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise ModelError(f"{path}: tensor {unknown[0]} ({len(unknown)} in all) has no place in the network, {advice}.")


def folder_tensor_shapes(folder: FilePath) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all safetensors in a model's folder, one file or shards with an index.

    Raises ModelError for a folder without safetensors or without a shard that its index names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder, give a model saved with save_pretrained.")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in ("*.bin", "*.ckpt", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only {pickled[0]}, and pickled files can run code" if pickled else "no weights at all"
        raise ModelError(f"{folder}: no .safetensors file ({found}), save the model as safetensors.")
    for index in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (folder / name).exists():
                raise ModelError(f"{folder}: shard {name} of {index.name} is missing, download the folder again.")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= tensor_shapes(file)
    return shapes


def load_component(kind: Any, folder: FilePath, dtype: torch.dtype) -> Any:
    """Load a diffusers or transformers model class from its folder, refusing tensors that are missing or misshapen."""
    folder_tensor_shapes(folder)
    try:
        model, info = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{folder}: can not be loaded as {kind.__name__} ({_one_line(error)}).") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: tensor {missing[0]} ({len(missing)} in all) is missing, download or save it again."
        )
    return model.eval()


def load_tokenizer(folder: FilePath) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a folder describes. Raises ModelError where there is none."""
    if not Path(folder).is_dir():
        raise ModelError(f"{folder}: there is no such folder, give a whole pipeline saved with save_pretrained.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: can not be loaded as a tokenizer ({_one_line(error)}).") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
