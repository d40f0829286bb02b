"""Provide the configs and safetensors headers of remote checkpoints as local files.

The header of a remote safetensors file is written to a sparse file of the same length, which readers of headers accept
as the real file. So the same check works for all sources, and the driver needs no disk space for weights.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jointdit.errors import ModelError
from pipelines.model.weights import hub, store
from pipelines.model.weights.local import checkpoint_folder
from pipelines.model.weights.pins import Pin
from pipelines.model.weights.verify import PinnedFile

LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
ReadRange = Callable[[str, int, int], bytes]


@contextlib.contextmanager
def local_headers(pins: Sequence[Pin]) -> Iterator[list[Path]]:
    """Yield a local folder or file for each pin, whose headers can be read; those of remote pins are temporary.

    A ModelError inside this context names the address in the spec instead of the temporary path.
    """
    with tempfile.TemporaryDirectory(prefix="jointdit-headers-") as name:
        places = {}
        for number, pin in enumerate(pins):
            places[pin.field] = _place(pin, Path(name) / str(number))
        try:
            yield [
                place / pin.single if pin.single else place for pin, place in zip(pins, places.values(), strict=True)
            ]
        except ModelError as error:
            sentence = str(error)
            for pin, place in zip(pins, places.values(), strict=True):
                if pin.address.kind != "local":
                    folder = store.storage_of(pin.address).uri if pin.address.kind == "store" else pin.address.location
                    sentence = sentence.replace(str(place), folder)
            raise ModelError(sentence) from error


def read_file(pin: Pin, name: str) -> bytes | None:
    """Read a small file of a pin, local or remote; None if the pin has no such file."""
    file = next((each for each in pin.files if each.name == name), None)
    if file is None:
        return None
    if (folder := _folder_here(pin, (file,))) is not None:
        return (folder / name).read_bytes()
    return _reader(pin)(name, 0, file.size)


def tensor_names(pin: Pin, name: str) -> list[str]:
    """Read the tensor names in the header of a safetensors file of a pin; empty if it is no such file."""
    file = next(each for each in pin.files if each.name == name)
    here = _folder_here(pin, (file,))
    read = _reader(pin) if here is None else _local_reader(here)
    header = _header_of(read, file)
    try:
        return list(json.loads(header[8:])) if header else []
    except ValueError:
        return []


def _place(pin: Pin, folder: Path) -> Path:
    if (here := _folder_here(pin, pin.files)) is not None:
        return here
    read = _reader(pin)
    for file in pin.files:
        _copy_header(read, file, folder / file.name)
    return folder


def _folder_here(pin: Pin, files: Sequence[PinnedFile]) -> Path | None:
    """Return the pin's folder on this machine, if it has these files; else None."""
    if pin.address.kind == "local":
        path = checkpoint_folder(pin.address.location)
        return path.parent if path.is_file() else path
    if pin.address.kind == "hub" and hub.is_complete(pin.address.location, pin.commit, list(files)):
        return hub.snapshot_folder(pin.address.location, pin.commit)
    return None


def _reader(pin: Pin) -> ReadRange:
    if pin.address.kind == "hub":
        return hub.range_reader(f"{pin.field} {pin.value}", pin.address.location, pin.commit)
    storage = store.storage_of(pin.address)
    return lambda file, start, stop: store.read_range(storage, file, start, stop)


def _copy_header(read: ReadRange, file: PinnedFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix != ".safetensors":
        target.write_bytes(read(file.name, 0, file.size) if file.size else b"")
        return
    header = _header_of(read, file)
    with target.open("wb") as output:
        output.write(header)
        if header:  # otherwise it is no safetensors file, and its reader raises
            output.truncate(file.size)


def _header_of(read: ReadRange, file: PinnedFile) -> bytes:
    """Return the length and header of a safetensors file; empty for other files."""
    length = read(file.name, 0, min(8, file.size)) if file.size else b""
    size = int.from_bytes(length, "little")
    if len(length) < 8 or size > min(file.size - 8, LARGEST_HEADER):
        return b""
    return length + read(file.name, 8, 8 + size)


def _local_reader(folder: Path) -> ReadRange:
    def read(name: str, start: int, stop: int) -> bytes:
        with (folder / name).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    return read
