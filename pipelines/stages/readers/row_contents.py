"""The content hash of a row: 128 bits of the SHA-256 of what a task reads of it, as hexadecimal.

It is compared when a file has changed (plan/carry.py): a row with the same id and content is not made again. Of a path
it covers the address and the etag of its target, which costs one request; embedded bytes are hashed themselves. The id
is no part of it, nor is a default from the spec, such as `input.prompt`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jointdit.errors import RowError, StoreError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.row_addresses import etag_of_path
from pipelines.stages.readers.rows import NEEDED, RawRow

DIGEST_CHARACTERS = 32
PATHS = ("image", "depth")  # fields whose text is an address


def content_of(raw: RawRow, file: SourceFile | Span, task: str) -> str:
    """Return the content hash of a row, empty if something that the task reads of it cannot be read.

    Raises:
        TransientError: the store fails.
    """
    if raw.error:
        return ""
    digest = hashlib.sha256()
    try:
        for name in NEEDED[task]:
            kind, data = _encoded(raw.values.get(name), name, file.uri)
            digest.update(f"{name} {kind} {len(data)}\n".encode())
            digest.update(data)
    except (RowError, StoreError, FileNotFoundError, ValueError):  # the row is read later, and then it is explained
        return ""
    return digest.hexdigest()[:DIGEST_CHARACTERS]


def has_paths(raw: RawRow) -> bool:
    """Return whether a value of a row is an address."""
    return any(isinstance(_unwrapped(raw.values.get(name)), str) for name in PATHS)


def _unwrapped(value: Any) -> Any:
    """Return the bytes or the path of a struct {bytes, path}, else the value."""
    if isinstance(value, Mapping):
        return value["bytes"] if value.get("bytes") is not None else value.get("path")
    return value


def _encoded(value: Any, name: str, manifest: str) -> tuple[str, bytes]:
    """Return a word for the kind of a value, and its bytes."""
    value = _unwrapped(value)
    if isinstance(value, bytes):
        return "bytes", value
    if isinstance(value, str) and name in PATHS:
        return "path", f"{value}\0{etag_of_path(value, name, manifest)}".encode("utf-8", "surrogatepass")
    if isinstance(value, str):
        return "text", value.encode("utf-8", "surrogatepass")
    return "json", json.dumps(value, default=repr).encode()
