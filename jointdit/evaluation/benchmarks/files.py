"""A data set on disk: a folder or a tar archive, the list of its images, and the decoding of images and maps."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jointdit.errors import InputError


class DatasetFiles:
    """Files by their path relative to the root; `source` is the root a message names."""

    def __init__(self, source: Path, archive: tarfile.TarFile | None = None) -> None:
        self.source = source
        self._archive = archive
        # Marigold's archives hold "./test/..."; others are made without the dot.
        names = [] if archive is None else archive.getnames()
        self._members = {str(PurePosixPath(name)): name for name in names}

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises InputError for a file that is listed but not there."""
        try:
            if self._archive is None:
                return (self.source / path).read_bytes()
            member = self._archive.extractfile(self._members[str(PurePosixPath(path))])
            assert member is not None
            return member.read()
        except (OSError, KeyError, AssertionError):
            raise InputError(
                f"{self.source}: {path} is in the list of images but not in the data set: complete either."
            ) from None


@contextmanager
def open_dataset(root: Path) -> Iterator[DatasetFiles]:
    """The files of a folder or of an uncompressed or compressed tar archive. Raises InputError for anything else."""
    if root.is_dir():
        yield DatasetFiles(root)
    elif root.is_file() and tarfile.is_tarfile(root):
        with tarfile.open(root) as archive:
            yield DatasetFiles(root, archive)
    else:
        found = "is a file, and no tar archive" if root.is_file() else "does not exist"
        raise InputError(f"{root} {found}: give the folder or the tar archive of the data set.")


def read_list(text: str, name: str, columns: int) -> list[list[str]]:
    """Lines of a list of images, split at white space; lines whose depth is "None" (KITTI) are left out.

    Raises InputError for a line with less than `columns` columns, and for a list without images.
    """
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) < columns:
            raise InputError(
                f"{name}, line {number}: {len(words)} of {columns} columns; give a line such as {_LINES[columns]}."
            )
        if words[1] != "None":
            entries.append(words)
    if not entries:
        raise InputError(f"{name} lists no image with depth: give the benchmark's list, a line an image.")
    return entries


_LINES = {2: "image.png depth.png", 3: "image.png depth.npy mask.npy"}


def decode_rgb(data: bytes, path: str) -> NDArray[np.uint8]:
    """An image file as (H, W, 3) uint8."""
    return np.asarray(_open_image(data, path).convert("RGB"))


def decode_depth_png(data: bytes, path: str, units_per_metre: float) -> NDArray[np.float32]:
    """A 16-bit greyscale PNG as (H, W) metres. Raises InputError for 8 bits, colour, and what is no image."""
    image = _open_image(data, path)
    if image.mode not in ("I;16", "I;16B", "I"):
        raise InputError(f"{path} has mode {image.mode}: depth must be a 16-bit greyscale PNG.")
    return (np.asarray(image).astype(np.float64) / units_per_metre).astype(np.float32)


def decode_npy(data: bytes, path: str) -> NDArray[Any]:
    """An array file as (H, W), axes of length 1 dropped. Pickled objects are refused."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is no array file ({error}): give an npy of numbers.") from None
    array = np.squeeze(array)
    if array.ndim != 2:
        raise InputError(f"{path} has shape {array.shape}: give one map (H, W) or (H, W, 1).")
    return array


def _open_image(data: bytes, path: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is no image that can be decoded ({error}): copy it again.") from None
    return image
