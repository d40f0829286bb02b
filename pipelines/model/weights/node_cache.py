"""The files of a pin on this node's disk: downloaded once, by one of its processes, and checked before any is used.

    <JOINTDIT_CACHE>/weights/<pin>/     what came from an object store, whole and checked: it appears by a rename
    <JOINTDIT_CACHE>/partial/<pin>/     what is being downloaded; the next process goes on where one was killed
    <JOINTDIT_CACHE>/checked/<pin>      a snapshot in the hub's own cache (HF_HOME) that was checked: sizes and times
    <JOINTDIT_CACHE>/locks/<pin>        held while one process downloads; the kernel lets go of it with the process

What is loaded from these files is mapped into memory, so the processes of a node share one copy in its page cache.
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

ATTEMPTS = 2  # at a file whose hash is wrong: what a broken transfer spoilt is right the second time
logger = logging.getLogger(__name__)


def local_path(pin: Pin) -> Path:
    """The folder or file of a pin on this node, downloaded where it is not here yet.

    Raises:
        ModelError: it is not what was pinned. TransientError, StoreError: it cannot be downloaded now.
    """
    what = f"{pin.field} {pin.value}"
    if pin.address.kind == "local":
        folder = _local(pin, what)
    elif pin.address.kind == "hub":
        folder = _from_hub(pin, what)
    else:
        folder = _from_store(pin, what)
    return folder / pin.single if pin.single is not None else folder


def _local(pin: Pin, what: str) -> Path:
    path = checkpoint_folder(pin.address.location)
    folder = path.parent if pin.address.is_file else path
    for file in pin.files:
        found = folder / file.name
        if not found.is_file() or found.stat().st_size != file.size:
            state = f"{found.stat().st_size} bytes long" if found.is_file() else "missing"
            raise ModelError(
                f"{what}: {file.name} is {state} on this machine, and {file.size} bytes long where the job was "
                "planned: give the same files to every node, or an address that all of them download from."
            )
    return folder


def _from_hub(pin: Pin, what: str) -> Path:
    name, marker = pin.address.location, cache_folder() / "checked" / key_of(pin)
    folder = hub.snapshot_folder(name, pin.commit)
    if _is_checked(marker, folder, pin):
        return folder
    with locked(key_of(pin)):
        if _is_checked(marker, folder, pin):
            return folder
        for attempt in range(ATTEMPTS):
            folder = hub.download(what, name, pin.commit, pin.files)
            wrong = _wrong_files(folder, pin.files)
            if not wrong:
                break
            for file in wrong:
                (folder / file).resolve().unlink(missing_ok=True)  # the blob that the snapshot points to
                (folder / file).unlink(missing_ok=True)
            if attempt + 1 == ATTEMPTS:
                raise _spoilt(what, wrong)
        _write(marker, _state_of(folder, pin))
    return folder


def _from_store(pin: Pin, what: str) -> Path:
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
                    fetched = store.download_file(what, storage, file, partial / file.name)
                    logger.info("%s: %d bytes of %s downloaded", what, fetched, file.name)
                    difference = mismatch(partial / file.name, file)
                    if difference is None:
                        break
                    logger.warning("%s: %s is spoilt: %s", what, file.name, difference)
                    (partial / file.name).unlink()
                    if attempt + 1 == ATTEMPTS:
                        raise _spoilt(what, {file.name: difference})
            shutil.rmtree(folder, ignore_errors=True)  # somebody has changed what was whole
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, folder)
        except OSError as error:
            raise _no_room(what, error) from error
    return folder


def key_of(pin: Pin) -> str:
    """Names a pin's files, and no others."""
    content = [pin.address.location, pin.commit, *((file.name, file.size, file.digest) for file in pin.files)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """One process of this node at a time; a killed one lets go. Raises StoreError where the cache is not writable."""
    path = cache_folder() / "locks" / key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _no_room("weights", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _wrong_files(folder: Path, files: tuple[PinnedFile, ...]) -> dict[str, str]:
    """What differs from the pin, by file."""
    found = {file.name: mismatch(folder / file.name, file) for file in files}
    return {name: difference for name, difference in found.items() if difference is not None}


def _has_sizes(folder: Path, pin: Pin) -> bool:
    """Whether a folder that was checked is still whole; its hashes were compared before it got its name."""
    return all(
        (folder / file.name).is_file() and (folder / file.name).stat().st_size == file.size for file in pin.files
    )


def _state_of(folder: Path, pin: Pin) -> dict[str, list[int]]:
    found = {file.name: (folder / file.name).stat() for file in pin.files}
    return {name: [each.st_size, each.st_mtime_ns] for name, each in found.items()}


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


def _spoilt(what: str, wrong: dict[str, str]) -> ModelError:
    name, difference = next(iter(wrong.items()))
    return ModelError(f"{what}: {name} is not what was planned, after {ATTEMPTS} downloads: {difference}.")


def _no_room(what: str, error: OSError) -> StoreError:
    reason = " ".join(str(error).split())
    return StoreError(
        f"{what}: the cache {cache_folder()} cannot be written ({reason}): make room, or set JOINTDIT_CACHE."
    )
