"""The files of a pin on this node's disk, downloaded once and verified.

    <JOINTDIT_CACHE>/weights/<pin>/     verified files from an object store; the folder is created by a rename
    <JOINTDIT_CACHE>/partial/<pin>/     a download in progress; the next process resumes an interrupted one
    <JOINTDIT_CACHE>/checked/<pin>      sizes and times of a verified snapshot in the hub's cache (HF_HOME)
    <JOINTDIT_CACHE>/locks/<pin>        a lock during the download; the kernel releases it when the process ends

Loaded tensors are memory-mapped, so the processes of a node share one copy in its page cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jointdit.errors import ModelError, StoreError
from pipelines.model.weights import hub, store
from pipelines.model.weights.local import cache_folder, checkpoint_folder
from pipelines.model.weights.pins import Pin
from pipelines.model.weights.verify import PinnedFile, mismatch

ATTEMPTS = 2  # downloads of a file with a wrong hash, which a broken transfer can cause
logger = logging.getLogger(__name__)


def local_path(pin: Pin) -> Path:
    """Return the folder or file of a pin on this node; download it if it is missing.

    Raises:
        ModelError: the files differ from the pin.
        TransientError, StoreError: they cannot be downloaded now.
    """
    label = f"{pin.field} {pin.value}"
    if pin.address.kind == "local":
        folder = _local(pin, label)
    elif pin.address.kind == "hub":
        folder = _from_hub(pin, label)
    else:
        folder = _from_store(pin, label)
    return folder / pin.single if pin.single is not None else folder


def _local(pin: Pin, label: str) -> Path:
    path = checkpoint_folder(pin.address.location)
    folder = path.parent if pin.address.is_file else path
    for file in pin.files:
        local_file = folder / file.name
        if not local_file.is_file() or local_file.stat().st_size != file.size:
            state = f"{local_file.stat().st_size} bytes long" if local_file.is_file() else "missing"
            raise ModelError(
                f"{label}: {file.name} is {state} on this machine, and {file.size} bytes long on the driver: copy the "
                "same files to every node, or give an address that all nodes can download from."
            )
    return folder


def _from_hub(pin: Pin, label: str) -> Path:
    name, marker = pin.address.location, cache_folder() / "checked" / key_of(pin)
    folder = hub.snapshot_folder(name, pin.commit)
    if _is_checked(marker, folder, pin):
        return folder
    with locked(key_of(pin)):
        if _is_checked(marker, folder, pin):
            return folder
        for attempt in range(ATTEMPTS):
            folder = hub.download(label, name, pin.commit, pin.files)
            wrong = _wrong_files(folder, pin.files)
            if not wrong:
                break
            for file in wrong:
                (folder / file).resolve().unlink(missing_ok=True)  # the blob of the snapshot's link
                (folder / file).unlink(missing_ok=True)
            if attempt + 1 == ATTEMPTS:
                raise _wrong_content(label, wrong)
        _write(marker, _state_of(folder, pin))
    return folder


def _from_store(pin: Pin, label: str) -> Path:
    key = key_of(pin)
    folder, partial = cache_folder() / "weights" / key, cache_folder() / "partial" / key
    if _has_sizes(folder, pin):
        return folder
    with locked(key):
        if _has_sizes(folder, pin):
            return folder
        storage = store.storage_of(pin.address)
        try:
            for file in pin.files:
                for attempt in range(ATTEMPTS):
                    fetched = store.download_file(label, storage, file, partial / file.name)
                    logger.info("%s: %d bytes of %s downloaded", label, fetched, file.name)
                    difference = mismatch(partial / file.name, file)
                    if difference is None:
                        break
                    logger.warning("%s: %s is damaged: %s", label, file.name, difference)
                    (partial / file.name).unlink()
                    if attempt + 1 == ATTEMPTS:
                        raise _wrong_content(label, {file.name: difference})
            shutil.rmtree(folder, ignore_errors=True)  # a folder that was changed after its verification
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, folder)
        except OSError as error:
            raise _not_writable(label, error) from error
    return folder


def key_of(pin: Pin) -> str:
    """Return a hash that identifies the files of a pin."""
    content = [pin.address.location, pin.commit, *((file.name, file.size, file.digest) for file in pin.files)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """Hold a lock of this node. A killed process releases it. Raises StoreError if the cache is not writable."""
    path = cache_folder() / "locks" / key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _not_writable("weights", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _wrong_files(folder: Path, files: tuple[PinnedFile, ...]) -> dict[str, str]:
    """Return the differences from the pin, by file."""
    differences = {file.name: mismatch(folder / file.name, file) for file in files}
    return {name: difference for name, difference in differences.items() if difference is not None}


def _has_sizes(folder: Path, pin: Pin) -> bool:
    """Whether a verified folder is complete; its hashes were compared before it was renamed."""
    return all(
        (folder / file.name).is_file() and (folder / file.name).stat().st_size == file.size for file in pin.files
    )


def _state_of(folder: Path, pin: Pin) -> dict[str, list[int]]:
    stats = {file.name: (folder / file.name).stat() for file in pin.files}
    return {name: [each.st_size, each.st_mtime_ns] for name, each in stats.items()}


def _is_checked(marker: Path, folder: Path, pin: Pin) -> bool:
    try:
        return bool(json.loads(marker.read_text()) == _state_of(folder, pin))
    except (OSError, ValueError):
        return False


def _write(marker: Path, state: dict[str, list[int]]) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    temporary = marker.with_name(f"{marker.name}.{os.getpid()}")
    temporary.write_text(json.dumps(state))
    os.replace(temporary, marker)


def _wrong_content(label: str, wrong: dict[str, str]) -> ModelError:
    name, difference = next(iter(wrong.items()))
    return ModelError(f"{label}: {name} differs from the pin after {ATTEMPTS} downloads: {difference}.")


def _not_writable(label: str, error: OSError) -> StoreError:
    reason = " ".join(str(error).split())
    return StoreError(
        f"{label}: the cache {cache_folder()} cannot be written ({reason}): make room, or set JOINTDIT_CACHE."
    )
