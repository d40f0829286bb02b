"""The text chunk of this package's depth PNGs, which states what their numbers are."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "jointdit:depth"
_DISPARITY = {"kind": "relative disparity", "nearest": 65535, "farthest": 0}


class DepthNote(NamedTuple):
    """What a PNG of `encode_depth_png` holds: relative disparity, and whether 0 marks a hole."""

    has_holes: bool


def note_for(has_holes: bool) -> PngInfo:
    """Return the chunk of a PNG of relative disparity."""
    info = PngInfo()
    info.add_text(KEY, json.dumps({**_DISPARITY, "hole": 0 if has_holes else None}))
    return info


def read_note(image: Image.Image) -> DepthNote | None:
    """Return the note of a PNG that this package wrote; None for other images."""
    try:
        note: Any = json.loads(image.info.get(KEY, ""))
    except (TypeError, ValueError):
        return None
    if not isinstance(note, dict) or note.get("kind") != _DISPARITY["kind"]:
        return None
    return DepthNote(has_holes=note.get("hole") is not None)
