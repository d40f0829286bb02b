"""The JSON that the authors' training writes beside an adapter, and that their inference reads.

    adapter.safetensors
    adapter.json    {"depth_transform": "none", "is_attnmask_training": false, "is_txt_ids_training": false}

An adapter with `depth_transform: inverse` was trained on 1 - disparity. `is_attnmask_training` masks the padding of the
text, which is not supported here. `is_txt_ids_training` changes nothing, because the stored text ids are zeros too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

from jointdit.errors import ModelError

DepthTransform = Literal["none", "inverse"]


def flags_file(adapter: str | os.PathLike[str]) -> Path:
    """Return the path of an adapter's JSON, which may not exist."""
    return Path(adapter).with_suffix(".json")


def depth_transform_of(adapter: str | os.PathLike[str]) -> DepthTransform:
    """Read the depth transform of an adapter; "none" without a JSON. Raises ModelError as `parse_flags`."""
    path = flags_file(adapter)
    return parse_flags(path.read_bytes(), str(path)) if path.is_file() else "none"


def parse_flags(data: bytes, label: str) -> DepthTransform:
    """Return the depth transform in the JSON of an adapter.

    Raises:
        ModelError: it is not a JSON object, has an unknown value, or asks for masks of the text.
    """
    try:
        flags: Any = json.loads(data)
    except ValueError:
        flags = None
    if not isinstance(flags, dict):
        raise ModelError(f"{label}: the JSON beside an adapter is not an object: download it again.")
    for name in ("is_attnmask_training", "is_txt_ids_training"):
        if not isinstance(flags.get(name, False), bool):
            raise ModelError(f"{label}: {name} is {flags[name]!r}: give true or false.")
    if flags.get("is_attnmask_training", False):
        raise ModelError(
            f"{label}: is_attnmask_training is true, and text masks are not supported: use an adapter without them."
        )
    transform = flags.get("depth_transform", "none")
    if transform not in get_args(DepthTransform):
        raise ModelError(f"{label}: depth_transform is {transform!r}: this package reads none and inverse.")
    return "inverse" if transform == "inverse" else "none"


def write_flags(adapter: str | os.PathLike[str], transform: DepthTransform) -> None:
    """Write the JSON of an adapter that needs one, or replace the one that is there."""
    path = flags_file(adapter)
    if transform != "none" or path.exists():
        flags = {"depth_transform": transform, "is_attnmask_training": False, "is_txt_ids_training": False}
        path.write_text(json.dumps(flags, indent=1) + "\n")
