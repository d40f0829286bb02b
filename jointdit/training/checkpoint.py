"""Training checkpoints: weights, moving average and optimizer in one safetensors file.

Files are written atomically. Tensors are named `<kind>.<parameter>`, where the kind is `now`, `ema` (if the run has a
moving average), or an entry of the optimizer's state. The header stores the step and `facts`, which a resumed run must
agree on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from jointdit.errors import ModelError, StoreError

NamedParameters = Sequence[tuple[str, torch.nn.Parameter]]
ADVICE = "it belongs to another network, give another output folder"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace `path` atomically: write to the temporary path of this context, which is synced and renamed at the end.

    Raises:
        StoreError: the file cannot be written (no space or permission); `path` is unchanged.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        reason = " ".join(str(error).split())
        raise StoreError(
            f"{path} cannot be written ({reason}): make room and run again, earlier files are unchanged."
        ) from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def training_state(
    named: NamedParameters, average: Sequence[torch.Tensor] | None, optimizer: torch.optim.Optimizer, keep: bool = True
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return all tensors of a checkpoint, and the names of optimizer entries that are plain numbers.

    Sharded tensors are gathered, so all processes of a sharded run must call this; those that do not write set `keep`
    to False and return no tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: set[str] = set()

    def add(name: str, value: torch.Tensor) -> None:
        whole = _whole(value) if keep or isinstance(value, DTensor) else None
        if keep and whole is not None:
            tensors[name] = whole

    for index, (name, parameter) in enumerate(named):
        add(f"now.{name}", parameter)
        if average is not None:
            add(f"ema.{name}", average[index])
        for key, value in optimizer.state[parameter].items():
            if not isinstance(value, torch.Tensor):
                numbers.add(key)
            add(f"{key}.{name}", torch.as_tensor(value))
    return tensors, sorted(numbers)


def save_training(
    path: Path,
    named: NamedParameters,
    average: Sequence[torch.Tensor] | None,
    optimizer: torch.optim.Optimizer,
    step: int,
    facts: Mapping[str, Any] | None = None,
    write: bool = True,
) -> None:
    """Save a run after `step` steps. average: None if the run has none. Only one process of a run sets `write`.

    Raises:
        StoreError: the file cannot be written; the previous one is unchanged.
    """
    tensors, numbers = training_state(named, average, optimizer, keep=write)
    if write:
        header = {"step": json.dumps(step), "facts": json.dumps(facts or {}), "numbers": json.dumps(numbers)}
        with replacing(path) as unfinished:
            save_file(tensors, unfinished, metadata=header)


def read_facts(path: Path) -> tuple[int, dict[str, Any]]:
    """Read (step, facts) from the header of a checkpoint. Raises ModelError for other files."""
    with _opened(path) as file:
        header = file.metadata() or {}
    if "step" not in header:
        raise ModelError(f"{path}: not a training checkpoint (it has no step), give another output folder.")
    facts = json.loads(header.get("facts", "{}"))
    return int(json.loads(header["step"])), {_current_name(name): value for name, value in facts.items()}


def _current_name(fact: str) -> str:
    """Return the name of a fact whose key of the spec was renamed since the checkpoint was written."""
    return fact.replace("training.optimiser.", "training.optimizer.")


@torch.no_grad()
def load_training(
    path: Path, named: NamedParameters, average: Sequence[torch.Tensor] | None, optimizer: torch.optim.Optimizer
) -> int:
    """Load a checkpoint into parameters, average (if the run has one) and optimizer, in place; returns its step.

    Raises:
        ModelError: the file is not a checkpoint, or belongs to another network; nothing is changed.
    """
    step, _ = read_facts(path)
    with _opened(path) as file:
        entries: dict[str, list[str]] = {}
        for key in file.keys():  # noqa: SIM118
            entry, _, name = key.partition(".")
            entries.setdefault(name, []).append(entry)
        kinds = ("now",) if average is None else ("now", "ema")
        _check_names(path, named, entries, kinds, lambda key: tuple(file.get_slice(key).get_shape()))
        numbers = set(json.loads(file.metadata().get("numbers", "[]")))
        for index, (name, parameter) in enumerate(named):
            parameter.copy_(_like(file.get_tensor(f"now.{name}"), parameter))
            if average is not None:
                average[index].copy_(_like(file.get_tensor(f"ema.{name}"), average[index]))
            state: dict[str, Any] = {}
            for entry in entries[name]:
                if entry in ("now", "ema"):
                    continue
                value = file.get_tensor(f"{entry}.{name}")
                if entry in numbers:
                    state[entry] = value.item()
                else:  # the step count stays on the CPU, as in torch's optimizers
                    state[entry] = value if entry == "step" else _like(value, parameter)
            optimizer.state[parameter] = state
    return step


def _check_names(
    path: Path,
    named: NamedParameters,
    entries: Mapping[str, Sequence[str]],
    kinds: Sequence[str],
    shape_of: Callable[[str], tuple[int, ...]],
) -> None:
    for name, parameter in named:
        if not set(kinds) <= set(entries.get(name, ())):
            raise ModelError(f"{path}: parameter {name} is missing, {ADVICE}.")
        found, needed = shape_of(f"now.{name}"), tuple(parameter.shape)
        if found != needed:
            raise ModelError(f"{path}: parameter {name} has shape {found} and the network needs {needed}, {ADVICE}.")
    unknown = sorted(set(entries) - {name for name, _ in named})
    if unknown:
        raise ModelError(f"{path}: parameter {unknown[0]} ({len(unknown)} in all) is not in the network, {ADVICE}.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: not a readable checkpoint ({reason}), delete it to start again.") from error


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Copy the tensor to the CPU, gathered if it is sharded."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().to("cpu", copy=True).contiguous()


def _like(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Move the value to the target's device, and shard it like the target if both have the same shape."""
    value = value.to(target.device)
    if isinstance(target, DTensor) and value.shape == target.shape:
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value
