"""Input files as seekable streams whose faults are ours: TransientError may pass, FileNotFoundError is gone.

Decoders (Arrow, zlib, tarfile, Pillow) report damaged data as OSError, and so do networks. Reading through `open_input`
tells them apart: a fault of the store is no OSError any more when it reaches the decoder's caller, so an OSError there
is damage.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from jointdit.errors import RowError
from pipelines.storage import etag_of, for_input
from pipelines.store_errors import explained, store_code

BUFFER_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 30  # of one encoded picture, map or archive member; MAX_PIXELS of float64 are 0.64e9 bytes


class _StoreFile(io.RawIOBase):
    """A file of fsspec with the store's exceptions explained."""

    def __init__(self, uri: str, cache: str) -> None:
        self._uri = uri
        fs, path = for_input(uri)
        with explained(uri):
            self._file: Any = fs.open(path, "rb", cache_type=cache)

    def readinto(self, buffer: Any) -> int:
        with explained(self._uri):
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_input(uri: str, random_access: bool = False) -> BinaryIO:
    """The file as a buffered binary stream. `random_access` fetches ranges as asked, without reading ahead.

    Raises FileNotFoundError, StoreError or TransientError, here and while it is read.
    """
    return io.BufferedReader(_StoreFile(uri, "none" if random_access else "readahead"), BUFFER_BYTES)


@contextlib.contextmanager
def open_text(uri: str) -> Iterator[BinaryIO]:
    """Like `open_input`, unpacking what ends in .gz."""
    with open_input(uri) as stream:
        if uri.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield stream


def fetch(uri: str) -> bytes:
    """The whole file.

    Raises:
        RowError: it has more than MAX_FILE_BYTES, or this user may not read it on the local disk.
        FileNotFoundError, StoreError, TransientError: it is gone; the store.
    """
    fs, path = for_input(uri)
    if "://" not in uri:
        return _fetch_local(path)
    with explained(uri):
        try:
            data: bytes = fs.cat_file(path, start=0, end=MAX_FILE_BYTES + 1)
        except OSError as error:
            if store_code(error) != "InvalidRange":  # what S3 says to any range of an empty object
                raise
            data = b""
    check_bytes(len(data), uri)
    return data


def _fetch_local(path: str) -> bytes:
    with explained(path):
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):  # pipes and devices never end, and a table may name one
                raise FileNotFoundError(path)
            check_bytes(found.st_size, path)
            with open(path, "rb") as file:
                return file.read()
        except NotADirectoryError:
            raise FileNotFoundError(path) from None
        except PermissionError:
            raise RowError(f"{path} may not be read by this user.") from None


def check_bytes(size: int, what: str) -> None:
    """Raise RowError above MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES:
        raise RowError(f"{what} has more than {MAX_FILE_BYTES >> 30} GiB, the limit of one picture or map.")


def check_unchanged(uri: str, etag: str) -> None:
    """Raise RowError where the file is not the version that was planned, FileNotFoundError where it is gone."""
    fs, path = for_input(uri)
    with explained(uri):
        found = etag_of(fs.info(path))
    if found != etag:
        raise RowError(
            f"{uri} has changed since it was planned (it was {etag}, now {found}): a new run plans a changed "
            "file; once it is again what it was, plan these rows again with jointdit retry URI --quarantined."
        )
