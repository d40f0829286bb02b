"""Parse names of weights in a spec.

tiny                                     the checkpoint in this package
/weights/FLUX.1-dev                      a folder
/weights/flux1-dev.safetensors           a single file
black-forest-labs/FLUX.1-dev@0ef5fff     a repository of the hub, at a commit, tag or branch
hf://owner/name@revision/file.safetensors    a single file in one, as the hub's own file system spells it
s3://bucket/weights/FLUX.1-dev           a folder or a single file in an object store (also gs://, abfs://)
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.store.addresses import SCHEMES, normalise

HUB_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
SINGLE_FILE = ".safetensors"
Kind = Literal["local", "hub", "store"]


@dataclass(frozen=True)
class WeightsAddress:
    """The parts of a name of weights."""

    kind: Kind
    location: str  # an absolute path, owner/name, or scheme://bucket/key
    revision: str | None = None  # of a repository on the hub
    file: str | None = None  # in a repository on the hub

    @property
    def is_file(self) -> bool:
        """Whether it is a single file, not a folder."""
        return (self.file or self.location).endswith(SINGLE_FILE)


def parse_address(value: str) -> WeightsAddress:
    """Parse a name of weights.

    Raises:
        ValueError: the kind of address is unknown, or the hub name is invalid.
    """
    scheme, separator, rest = value.partition("://")
    if separator and scheme == "hf":
        return _hub_address(value, rest)
    if separator and SCHEMES.get(scheme) != "file":
        if scheme not in SCHEMES:
            raise ValueError(f"{scheme}:// is not supported: give a path, a hub name, s3://, gs:// or abfs://")
        return WeightsAddress("store", normalise(value))
    if separator:
        return WeightsAddress("local", normalise(value))
    path = absolute_folder(value)
    return (
        WeightsAddress("local", path)
        if value == "tiny" or path != value or os.path.isabs(value)
        else _hub_address(value, value)
    )


def absolute_folder(value: str) -> str:
    """Return a path as an absolute one, because Ray workers run in other folders; return "tiny" and hub names as given.

    A value is a path if it starts with "/", "." or "~", has more than one "/", ends with .safetensors, or exists.
    """
    path = os.path.expanduser(value)
    is_path = value.startswith(("/", ".", "~")) or value.count("/") > 1 or path.endswith(SINGLE_FILE)
    return str(Path(path).absolute()) if value != "tiny" and (is_path or os.path.exists(path)) else value


def spelled(value: str | None) -> str | None:
    """Return the canonical form of a name of weights. Raises ValueError as `parse_address`."""
    if value is None:
        return None
    address = parse_address(value)
    if address.kind != "hub":
        return address.location
    revision = f"@{address.revision}" if address.revision else ""
    return f"hf://{address.location}{revision}/{address.file}" if address.file else f"{address.location}{revision}"


def _hub_address(value: str, name: str) -> WeightsAddress:
    parts = name.split("/")
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    repository, at, revision = repository.partition("@")
    if at and not revision:
        raise ValueError(f"{value!r} has no revision after the @: give a commit, tag or branch, or remove the @")
    if not HUB_NAME.fullmatch(repository):
        raise ValueError(
            f"{value!r} is neither a path nor a hub name such as owner/name or owner/name@revision: correct it"
        )
    if file and not file.endswith(SINGLE_FILE):
        raise ValueError(f"{value!r} is not a {SINGLE_FILE} file: weights load from safetensors only")
    return WeightsAddress("hub", repository, revision or None, file or None)
