"""Weight files: safetensors only, with names and shapes checked before loading.

The loaders of diffusers and transformers initialise missing tensors with random numbers and only log it. Here a missing
tensor is an error. A pickled file is an error too, because loading it can run code. Pickles can also be loaded
indirectly: through a safetensors index that names .bin shards, or through a PEFT adapter in the model's folder, which
transformers loads without being asked.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jointdit.errors import ModelError
from jointdit.loading.network_errors import network_errors

FilePath = str | os.PathLike[str]
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# Errors that the loaders raise for configurations that are damaged or of another kind.
LOAD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,  # the library of a quantisation is not installed
    StrictDataclassError,
)


@contextlib.contextmanager
def wrap_load_errors(message: str) -> Iterator[None]:
    """Convert errors of the loaders to a ModelError whose message begins with `message`."""
    try:
        yield
    except ModelError:
        raise
    except network_errors(*LOAD_ERRORS) as error:
        raise ModelError(f"{message} ({_one_line(error)}).") from error


def tensor_shapes(path: FilePath) -> dict[str, tuple[int, ...]]:
    """Read names and shapes from the header of a safetensors file. Raises ModelError."""
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
    """Raise ModelError for the first tensor that is missing, has the wrong shape, or is unknown.

    advice: the end of the message.
    """
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"{path}: tensor {name} of shape {shape} is missing, {advice}.")
        if found[name] != shape:
            raise ModelError(f"{path}: tensor {name} has shape {found[name]} but the network needs {shape}, {advice}.")
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise ModelError(f"{path}: tensor {unknown[0]} ({len(unknown)} in all) is not in the network, {advice}.")


def folder_tensor_shapes(folder: FilePath) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of all safetensors in a model's folder, a single file or shards with an index.

    Raises ModelError if the folder has no safetensors, or a shard of its index is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder, give a model saved with save_pretrained.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: adapter_config.json makes the loader look for a PEFT adapter, which may be pickled: merge the "
            "adapter and save the whole model."
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        found = f"only {pickled[0]}, and pickled files can run code" if pickled else "no weights at all"
        raise ModelError(f"{folder}: no .safetensors file ({found}), save the model as safetensors.")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        for name in _shards(index):
            if not (folder / name).exists():
                raise ModelError(f"{folder}: shard {name} of {index.name} is missing, download the folder again.")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= tensor_shapes(file)
    return shapes


def _shards(index: Path) -> list[str]:
    """Return the shards that an index names. Raises ModelError for other files than safetensors in its folder."""
    with wrap_load_errors(f"{index}: it is not an index of shards, download it again"):
        names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    for name in sorted(names):
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise ModelError(
                f"{index}: it names the shard {name!r}, which is not a .safetensors file in the same folder (pickled "
                "files can run code), save the model as safetensors."
            )
    return sorted(names)


def load_component(
    kind: Any, folder: FilePath, dtype: torch.dtype, device: torch.device | str | None = None, **options: Any
) -> Any:
    """Load a diffusers or transformers model from its folder. Raises ModelError for missing or misshapen tensors.

    The network is built on the meta device and filled tensor by tensor on `device`, default the CPU, where tensors that
    keep their stored type stay memory-mapped. options: of its from_pretrained, such as quantization_config.
    """
    folder_tensor_shapes(folder)
    with wrap_load_errors(f"{folder}: cannot be loaded as {kind.__name__}"):
        model, info = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **device_map_for(device), **options
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: tensor {missing[0]} ({len(missing)} in all) is missing, download or save it again."
        )
    return model.eval()


def device_map_for(device: torch.device | str | None) -> dict[str, Any]:
    """Return the loaders' arguments for the device of the loaded tensors; None is the loaders' default, the CPU."""
    return {} if device is None else {"device_map": {"": torch.device(device)}}


def check_foreign_model(name: FilePath) -> None:
    """Raise ModelError if loading the folder of another library's model would unpickle; hub names are not checked.

    Call the loader afterwards with use_safetensors=True and trust_remote_code=False.
    """
    if Path(name).is_dir():
        folder_tensor_shapes(name)


def model_type(name: FilePath) -> str | None:
    """Return model_type from the config.json of a transformers model's folder; None for a hub name.

    Raises ModelError if the folder has no readable config.json.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: config.json is missing, give a model saved with save_pretrained.")
    with wrap_load_errors(f"{path}: it is not a configuration of transformers, save the model again"):
        return str(json.loads(path.read_text())["model_type"])


def model_name(path: FilePath) -> str:
    """Return a model's name for tables: the last part of its path, or of its repository for a snapshot of the hub."""
    folder = Path(path)
    is_snapshot = folder.parent.name == "snapshots"
    return folder.parent.parent.name.rpartition("--")[2] if is_snapshot else folder.name


def load_tokenizer(folder: FilePath) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder. Raises ModelError if there is none, or loading it would run code."""
    if not Path(folder).is_dir():
        raise ModelError(f"{folder}: there is no such folder, give a whole pipeline saved with save_pretrained.")
    with wrap_load_errors(f"{folder}: cannot be loaded as a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # None would prompt the user
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
