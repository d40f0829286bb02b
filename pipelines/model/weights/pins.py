"""A pin: the exact files of weights, so that all workers load the same files.

The driver makes it once. The pin of a hub name has a commit, that of an object store the ETags of its objects, and that
of a local path the hashes of its files; all have sizes. Its field `weights` is a part of the job's fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jointdit.errors import ModelError
from pipelines.model.weights import hub, store
from pipelines.model.weights.local import checkpoint_folder, hashed, local_files
from pipelines.model.weights.selection import SCHEDULER, Role, beside_adapter, select_files
from pipelines.model.weights.terms import Terms, terms_of_readme
from pipelines.model.weights.verify import PinnedFile
from pipelines.spec.weights_address import WeightsAddress, parse_address

LORA_FIELD = "model.base_loras."  # and a number


@dataclass(frozen=True)
class Pin:
    """The weights of one field of the spec."""

    field: str  # model.base
    value: str  # as in the spec
    address: WeightsAddress
    commit: str  # of the hub
    files: tuple[PinnedFile, ...]  # names relative to the folder, or to the folder of a single file
    weights: str  # the hub's commit, or a SHA-256 over names and hashes
    terms: Terms

    def __str__(self) -> str:
        at = f" at {self.commit[:12]}" if self.commit else ""
        return f"{self.value.partition('@')[0] if self.commit else self.value}{at}, {len(self.files)} files"

    @property
    def bytes(self) -> int:
        """Total size of all files."""
        return sum(file.size for file in self.files)

    @property
    def single(self) -> str | None:
        """The weight file, if the address or the role is a single file."""
        weights = [file.name for file in self.files if file.name.endswith(".safetensors")]
        is_one = self.address.is_file or self.field == "model.adapter" or self.field.startswith(LORA_FIELD)
        return weights[0] if is_one else None

    def recorded(self) -> dict[str, Any]:
        """Return the record for the job, ready for JSON."""
        terms = {key: value for key, value in asdict(self.terms).items() if value not in (None, "")}
        return {"value": self.value, "commit": self.commit, "weights": self.weights, "terms": terms}


def pin(
    field: str,
    value: str,
    role: Role,
    *,
    revision: str | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Pin:
    """Pin the files that `value` names.

    recorded: the record of an earlier pin of this field; a hub name without a revision keeps its commit.

    Raises:
        ModelError: the files do not exist, are not safetensors, or may not be downloaded.
        StoreError, TransientError: an object store or the hub cannot be read.
    """
    label = f"{field} {value}"
    try:
        address = parse_address(value)
    except ValueError as error:
        raise ModelError(f"{field}: {error}.") from None
    if address.kind == "hub":
        return _pin_hub(field, value, address, role, revision, recorded or {})
    if address.kind == "store":
        objects = store.list_objects(label, address)
        names = list(objects) if address.is_file else select_files(objects, role, label)
        if address.is_file and role == "adapter":
            objects |= store.find_beside(address, beside_adapter(names[0]))
            names = list(objects)
        chosen = store.pinned(address, [objects[name] for name in names])
        # Pins of earlier outputs have no scheduler; the fingerprint has what it says.
        weights = identity_of(tuple(file for file in chosen if file.name != SCHEDULER), role)
        return Pin(field, value, address, "", chosen, weights, store.read_terms(address))
    return _pin_local(field, value, address, role)


def identity_of(chosen: tuple[PinnedFile, ...], role: Role | None = None) -> str:
    """Return the SHA-256 over names and hashes, without the model card.

    The JSON of an adapter does not count, because the fingerprint has what it says.
    """
    files = [file for file in chosen if file.decides_pixels]
    if role == "adapter":
        files = [file for file in files if file.name.endswith(".safetensors")]
    lines = [f"{file.name} {file.digest.removeprefix('sha256:')}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _pin_local(field: str, value: str, address: WeightsAddress, role: Role) -> Pin:
    path = checkpoint_folder(address.location)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(
                f"{field} {value}: weights load from .safetensors only (pickled files can run code), convert it first."
            )
        flags = path.parent / beside_adapter(path.name)
        chosen = hashed(path.parent, [path, flags] if role == "adapter" and flags.is_file() else [path])
        terms = terms_of_readme(path.parent / "README.md")
        return Pin(field, value, address, "", chosen, identity_of(chosen, role), terms)
    if not path.is_dir():
        is_adapter = role == "adapter"
        advice = "the adapter's safetensors file" if is_adapter else "a checkpoint folder, a hub name, or tiny"
        raise ModelError(f"{field} {value} does not exist: give {advice}.")
    paths = local_files(path)
    if not any(file.suffix == ".safetensors" for file in paths):
        raise ModelError(
            f"{field} {value} is a folder without weights: give one with model_index.json and .safetensors."
        )
    if role == "adapter":
        paths = [path / name for name in select_files([str(f.relative_to(path)) for f in paths], role, field)]
    chosen = hashed(path, paths)
    terms = terms_of_readme(path / "README.md")
    if value == "tiny":
        terms = Terms("apache-2.0", told_by="this package")
    return Pin(field, value, address, "", chosen, identity_of(chosen, role), terms)


def _pin_hub(
    field: str,
    value: str,
    address: WeightsAddress,
    role: Role,
    revision: str | None,
    recorded: Mapping[str, Any],
) -> Pin:
    wanted_revision = address.revision or revision
    if wanted_revision is None and recorded.get("value") == value:
        wanted_revision = recorded.get("commit") or None
    repository = hub.find(f"{field} {value}", address.location, wanted_revision)
    if address.file is not None:
        if address.file not in repository.files:
            raise ModelError(
                f"{field} {value}: the repository has no such file at {repository.commit}: correct the name."
            )
        flags = beside_adapter(address.file)
        names = [address.file, flags] if role == "adapter" and flags in repository.files else [address.file]
    else:
        names = select_files(repository.files, role, f"{field} {value}")
    chosen = tuple(repository.files[name] for name in names)
    hub.check_access(f"{field} {value}", address.location, repository, names)
    weights = repository.commit if address.file is None else identity_of(chosen, role)
    return Pin(field, value, address, repository.commit, chosen, weights, repository.terms)
