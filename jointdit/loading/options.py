"""The options of `JointDiTPipeline.from_pretrained` by diffusers' names: each is honoured or refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jointdit.errors import ModelError

DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "variant")
ARGUMENTS = (  # that `from_pretrained` takes by name, listed in messages
    *("base", "adapter", "components", "base_loras", "quantization", "device"),
    *("torch_dtype", "dtype", "device_map", "use_safetensors", "low_cpu_mem_usage"),
)
# Options of diffusers' loader of models, beside those of the download.
NETWORK = (
    *DOWNLOAD,
    *("torch_dtype", "dtype", "device_map", "max_memory", "offload_folder", "offload_state_dict", "low_cpu_mem_usage"),
    *("use_safetensors", "subfolder", "quantization_config", "parallel_config", "disable_mmap"),
    *("dduf_entries", "config", "use_flashpack", "flashpack_kwargs"),
)
PLACES = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps over several devices


@dataclass(frozen=True)
class LoadOptions:
    """How the components are loaded: dtype of the transformer and text encoders, device, and the files' variant."""

    dtype: torch.dtype
    device: torch.device | str | None  # None: the CPU
    variant: str | None

    def of_component(self, folder: Path) -> dict[str, Any]:
        """Return the options of the loader of a component. Raises ModelError if its folder has no such variant."""
        if self.variant is None:
            return {}
        if folder.is_dir() and not any(folder.glob(f"*.{self.variant}*.safetensors")):
            raise ModelError(
                f"{folder}: variant is {self.variant!r}, and it has no file *.{self.variant}.safetensors: leave it "
                "out, or save the pipeline with it."
            )
        return {"variant": self.variant}


def read_options(
    options: Mapping[str, Any],
    known: Iterable[str],
    torch_dtype: Any = None,
    device: torch.device | str | None = None,
) -> tuple[LoadOptions, dict[str, Any]]:
    """Return the options of loading, and those that are left: components, settings and options of the download.

    known: names of components and settings. Raises ModelError for an option that is unknown or not supported.
    """
    left = dict(options)
    left.pop("low_cpu_mem_usage", None)  # weights are always loaded tensor by tensor
    dtype = left.pop("dtype", None)
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ModelError(f"dtype is {dtype} and torch_dtype {torch_dtype}: they are the same option, give one.")
    _refuse_pickles(left.pop("use_safetensors", None))
    device_map = left.pop("device_map", None)
    if device_map is not None and (not isinstance(device_map, str | torch.device) or device_map in PLACES):
        raise ModelError(
            f"device_map is {device_map!r}: give one device, such as 'cuda', or call enable_model_cpu_offload."
        )
    if device_map is not None and device is not None:
        raise ModelError(f"device_map is {device_map} and device {device}: they are the same option, give one.")
    _refuse_unknown(left, (*known, *DOWNLOAD, *ARGUMENTS))
    chosen = device if device_map is None else device_map
    return LoadOptions(as_dtype(dtype if torch_dtype is None else torch_dtype), chosen, left.get("variant")), left


def network_options(options: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Return the options of the network's `from_pretrained` for diffusers' loader, checked.

    settings: names of its config, which may be replaced. Raises ModelError as `read_options`; diffusers would ignore
    an unknown name, and load float32 for a dtype that is no torch.dtype.
    """
    left = {name: value for name, value in options.items() if name != "torch_dtype" or value is not None}
    _refuse_unknown(left, (*settings, *NETWORK))
    _refuse_pickles(left.pop("use_safetensors", None))
    torch_dtype = left.pop("torch_dtype", None)
    dtype = left.pop("dtype", None)
    if None not in (dtype, torch_dtype) and as_dtype(dtype) != as_dtype(torch_dtype):
        raise ModelError(f"dtype is {dtype} and torch_dtype {torch_dtype}: they are the same option, give one.")
    return {**left, "torch_dtype": as_dtype(dtype if torch_dtype is None else torch_dtype), "use_safetensors": True}


def _refuse_unknown(given: Iterable[str], names: Iterable[str]) -> None:
    names = sorted(names)
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            advice = f"did you mean {close[0]}?" if close else f"use some of {', '.join(names)}."
            raise ModelError(f"from_pretrained has no option {name!r}: {advice}")


def _refuse_pickles(use_safetensors: bool | None) -> None:
    if use_safetensors is False:
        raise ModelError(
            "use_safetensors is False, and pickled files can run code: convert the weights, or leave it out."
        )


def as_dtype(given: Any) -> torch.dtype:
    """Return a dtype from torch's or its name; None is float32. Raises ModelError for others."""
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if dtype is None and given is None:
        return torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(
            f"torch_dtype is {given!r}: give one type for the transformer and text encoders, such as torch.bfloat16; "
            "the VAE always runs in float32."
        )
    return dtype
