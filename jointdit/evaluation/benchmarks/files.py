"""Files of a data set in a folder or tar archive, its list of images, and their decoding."""

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
    """Files by their path relative to the root. `source` is the root, for messages."""

    def __init__(self, source: Path, archive: tarfile.TarFile | None = None) -> None:
        self.source = source
        self._archive = archive
        # Names in Marigold's archives begin with "./", those in other archives may not.
        names = [] if archive is None else archive.getnames()
        self._members = {str(PurePosixPath(name)): name for name in names}

    def read(self, path: str) -> bytes:
        """Read a file. Raises InputError for a file that is listed but missing."""
        try:
            if self._archive is None:
                return (self.source / path).read_bytes()
            member = self._archive.extractfile(self._members[str(PurePosixPath(path))])
            assert member is not None
            return member.read()
        except (OSError, KeyError, AssertionError):
            raise InputError(
                f"{self.source}: {path} is in the list of images but not in the data set: add it, or correct the list."
            ) from None


@contextmanager
def open_dataset(root: Path) -> Iterator[DatasetFiles]:
    """Open a folder, or an uncompressed or compressed tar archive. Raises InputError for anything else."""
    if root.is_dir():
        yield DatasetFiles(root)
    elif root.is_file() and tarfile.is_tarfile(root):
        with tarfile.open(root) as archive:
            yield DatasetFiles(root, archive)
    else:
        found = "is not a tar archive" if root.is_file() else "does not exist"
        raise InputError(f"{root} {found}: give the folder or the tar archive of the data set.")


def read_list(text: str, name: str, columns: int) -> list[list[str]]:
    """Split the lines of a list of images at white space; lines whose depth is "None" (KITTI) are skipped.

    Raises InputError for a line with fewer than `columns` columns, and for a list without images.
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
        raise InputError(f"{name} lists no image with depth: give the benchmark's list, one line per image.")
    return entries


_LINES = {2: "image.png depth.png", 3: "image.png depth.npy mask.npy"}


def decode_rgb(data: bytes, path: str) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) uint8."""
    return np.asarray(_open_image(data, path).convert("RGB"))


def decode_depth_png(data: bytes, path: str, units_per_metre: float) -> NDArray[np.float32]:
    """Decode a 16-bit greyscale PNG to (H, W) metres. Raises InputError for 8 bits, colour, and other files."""
    image = _open_image(data, path)
    if image.mode not in ("I;16", "I;16B", "I"):
        raise InputError(f"{path} has mode {image.mode}: depth must be a 16-bit greyscale PNG.")
    return (np.asarray(image).astype(np.float64) / units_per_metre).astype(np.float32)


def decode_npy(data: bytes, path: str) -> NDArray[Any]:
    """Decode an npy file to (H, W); axes of length 1 are removed. Raises InputError, also for pickled objects."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is not an array file ({error}): give an npy of numbers.") from None
    array = np.squeeze(array)
    if array.ndim != 2:
        raise InputError(f"{path} has shape {array.shape}: give one map (H, W) or (H, W, 1).")
    return array


def _open_image(data: bytes, path: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be decoded as an image ({error}): copy it again.") from None
    return image
