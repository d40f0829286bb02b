"""Weight files: safetensors only, checked by name and shape before anything is loaded.

The loaders of diffusers and transformers initialise a tensor that a file lacks with random numbers and go on with a
log line. Here that is an error, and so is a pickled file, which can run code when it is loaded. They have more ways to
one than its name: an index of safetensors that names .bin shards, and a PEFT adapter beside the weights, which
transformers loads unasked.
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
# What the loaders raise at configurations that are damaged or of something else.
LOAD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,  # a quantisation whose library is not here
    StrictDataclassError,
)


@contextlib.contextmanager
def told_as_model_error(what: str) -> Iterator[None]:
    """Turn what the loaders raise into a ModelError that begins with `what`."""
    try:
        yield
    except ModelError:
        raise
    except network_errors(*LOAD_ERRORS) as error:
        raise ModelError(f"{what} ({_one_line(error)}).") from error


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
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: adapter_config.json makes its loader look for a PEFT adapter, which may be pickled: merge the "
            "adapter and save the whole model."
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in ("*.bin", "*.ckpt", "*.pt", "*.pth") for path in folder.glob(pattern))
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
    """The files an index names, safetensors in its own folder: the loaders of .bin shards unpickle."""
    with told_as_model_error(f"{index}: is no index of shards, download it again"):
        names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    for name in sorted(names):
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise ModelError(
                f"{index}: names the shard {name!r}, and weights load from .safetensors files beside it only (pickled "
                "files can run code), save the model as safetensors."
            )
    return sorted(names)


def load_component(
    kind: Any, folder: FilePath, dtype: torch.dtype, device: torch.device | str | None = None, **options: Any
) -> Any:
    """Load a diffusers or transformers model class from its folder, refusing tensors that are missing or misshapen.

    The network is built without memory and filled tensor by tensor from the mapped files, on the device (default: the
    CPU, where tensors that keep their type stay mapped). options: of its from_pretrained, such as quantization_config.
    """
    folder_tensor_shapes(folder)
    with told_as_model_error(f"{folder}: can not be loaded as {kind.__name__}"):
        model, info = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **placed(device), **options
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: tensor {missing[0]} ({len(missing)} in all) is missing, download or save it again."
        )
    return model.eval()


def placed(device: torch.device | str | None) -> dict[str, Any]:
    """The loaders' own arguments for a device that tensors are read to; None leaves it to them, which is the CPU."""
    return {} if device is None else {"device_map": {"": torch.device(device)}}


def check_foreign_model(name: FilePath) -> None:
    """Refuse a folder of another library's model that its loader would unpickle; a hub name passes.

    Raises ModelError. The loader itself is then called with use_safetensors=True and trust_remote_code=False.
    """
    if Path(name).is_dir():
        folder_tensor_shapes(name)


def model_type(name: FilePath) -> str | None:
    """What the config.json of a transformers model's folder says it is; None for a hub name.

    Raises ModelError where the folder has no readable config.json.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: config.json is missing, give a model saved with save_pretrained.")
    with told_as_model_error(f"{path}: is no configuration of transformers, save the model again"):
        return str(json.loads(path.read_text())["model_type"])


def model_name(path: FilePath) -> str:
    """What tables call a model: the last part of its path; of a snapshot in the hub's cache, that of its repository."""
    folder = Path(path)
    is_snapshot = folder.parent.name == "snapshots"
    return folder.parent.parent.name.rpartition("--")[2] if is_snapshot else folder.name


def load_tokenizer(folder: FilePath) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a folder describes. Raises ModelError where there is none, or one that is code."""
    if not Path(folder).is_dir():
        raise ModelError(f"{folder}: there is no such folder, give a whole pipeline saved with save_pretrained.")
    with told_as_model_error(f"{folder}: can not be loaded as a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # None would ask the terminal
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
