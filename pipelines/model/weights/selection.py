"""Select the files of a checkpoint: safetensors, configs and tokenizers, never a pickle.

FLUX's repositories contain the same weights in several layouts; only one is selected.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal

from jointdit.errors import ModelError

Role = Literal["pipeline", "transformer", "components", "adapter", "model"]

ENCODERS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
TRANSFORMER = "transformer"
SCHEDULER = "scheduler/scheduler_config.json"
CARD = "README.md"  # states the licence
SUFFIXES = (".safetensors", ".json", ".txt", ".model")
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
LISTED = 5  # names in a message


def select_files(names: Iterable[str], role: Role, label: str) -> list[str]:
    """Select the files of a repository or folder that loading it in this role needs; sorted.

    label: the field and its value, for messages.

    Raises:
        ModelError: there are no safetensors, there are several adapters, or a name leads out of the folder.
    """
    names = sorted(name for name in names if not name.endswith("/"))
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ModelError(f"{label}: the file name {name!r} leads out of its folder: give another source.")
    if role == "adapter":
        adapter = _only_adapter(names, label)
        return [adapter, *(name for name in names if name in (CARD, beside_adapter(adapter)))]
    chosen = [name for name in names if name == CARD or _is_wanted(name, role, names)]
    if not any(name.endswith(".safetensors") for name in chosen):
        pickled = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in PICKLES)]
        other = f"only {pickled[0]}, and pickled files can run code" if pickled else "no weights at all"
        raise ModelError(f"{label}: no .safetensors file for its {role} ({other}): give one saved as safetensors.")
    return chosen


def beside_adapter(name: str) -> str:
    """Return the name of the JSON that an adapter's training writes beside it (jointdit/loading/adapter_flags.py)."""
    return str(PurePosixPath(name).with_suffix(".json"))


def _is_wanted(name: str, role: Role, names: list[str]) -> bool:
    path = PurePosixPath(name)
    if path.suffix not in SUFFIXES or any(part.startswith(".") for part in path.parts):
        return False
    folder = path.parts[0] if len(path.parts) == 2 else None
    if role == "model":
        return len(path.parts) == 1
    if role == "transformer":
        has_folder = any(other.startswith(f"{TRANSFORMER}/") for other in names)
        return folder == TRANSFORMER if has_folder else len(path.parts) == 1
    parts = ENCODERS if role == "components" else (TRANSFORMER, *ENCODERS)
    is_config = name == f"{TRANSFORMER}/config.json"  # gives the shape of the network
    return name in ("model_index.json", SCHEDULER) or folder in parts or is_config


def _only_adapter(names: list[str], label: str) -> str:
    files = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if len(files) == 1:
        return files[0]
    others = ", ".join((files or names)[:LISTED]) or "nothing"
    number = "no .safetensors file" if not files else f"{len(files)} .safetensors files"
    raise ModelError(f"{label}: {number} at its top, where one adapter should be ({others}): name the file itself.")
