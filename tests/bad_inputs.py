"""Cases of bad input: commands that are refused, and rows that are set aside."""

from __future__ import annotations

import copy
import io
import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from PIL import Image

PROMPTS = ["a red cube on a blue floor in front of a white wall", "a green sphere on a gray floor"]
JOINT: dict[str, Any] = {"task": "joint", "input": {"uri": "in/prompts.txt"}, "output": {"uri": "out"}}
NOWHERE = "s3://no-such-bucket/out"


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


GREY = np.arange(64, dtype=np.uint16).reshape(8, 8) * 900
COLOURS = np.zeros((20, 20, 3), np.uint8)
HEADER = b"IHDR" + (40_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
BOMB = png(COLOURS)[:12] + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + png(COLOURS)[33:]


@dataclass(frozen=True)
class Refused:
    """A command line that fails with a sentence that has these parts; `spec` is written to spec.yaml first."""

    command: str
    parts: tuple[str, ...]
    spec: str


@dataclass(frozen=True)
class SetAside:
    """A line of a table, or a file, between two good ones; its error has these parts."""

    task: str
    data: bytes
    parts: tuple[str, ...]


def refused(command: str, *parts: str, spec: str = "", **changes: Any) -> Refused:
    """`changes`: fields of a good joint job, "section__field"; None removes the field."""
    data = copy.deepcopy(JOINT)
    for path, value in changes.items():
        section: Any = data
        *parents, last = path.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
        if value is None:
            del section[last]
    return Refused(command, parts, spec or yaml.safe_dump(data))


def row(task: str, data: bytes | dict[str, Any], *parts: str) -> SetAside:
    return SetAside(task, data if isinstance(data, bytes) else json.dumps(data).encode(), parts)


RUN, PLAN = "run spec.yaml", "plan spec.yaml"
