"""Input files as seekable streams whose faults are ours: TransientError may pass, FileNotFoundError is gone.

Decoders (Arrow, zlib, tarfile, Pillow) report damaged data as OSError, and so do networks. Reading through `open_input`
tells them apart: a fault of the store is no OSError any more when it reaches the decoder's caller, so an OSError there
is damage.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from jointdit.errors import RowError, StoreError
from pipelines.store.explain import explained, store_code, store_exceptions
from pipelines.store.storage import etag_of, for_input

BUFFER_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 30  # of one encoded image, map or archive member; MAX_PIXELS of float64 are 0.64e9 bytes
AGAIN = (408, 409, 425, 429)  # HTTP statuses below 500 that may pass
OF_THE_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)
SHOWN_CHARACTERS = 200


class _StoreFile(io.RawIOBase):
    """A file of fsspec with the store's exceptions explained."""

    def __init__(self, uri: str, cache: str) -> None:
        self._uri = uri
        fs, path = for_input(uri)
        with explained(uri):
            self._file: Any = fs.open(path, "rb", cache_type=cache) if "://" in uri else open_regular(path)

    def readinto(self, buffer: Any) -> int:
        with explained(self._uri):
            count = self._file.readinto(buffer)
        if count is None:
            raise RowError(f"{self._uri} is no ordinary file, reading it would not end: take it out of the input.")
        return int(count)

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
        RowError: it has more than MAX_FILE_BYTES, or cannot be opened on the local disk.
        FileNotFoundError, StoreError, TransientError: it is gone; the store.
    """
    fs, path = for_input(uri)
    if "://" not in uri:
        return _fetch_local(path)
    with explained(uri):
        try:
            data: bytes = fs.cat_file(path, start=0, end=MAX_FILE_BYTES + 1)
        except store_exceptions() as error:
            if store_code(error) == "InvalidRange":  # what S3 says to any range of an empty object
                data = b""
            elif _is_refusal(error):
                reason = " ".join(str(error).split()) or type(error).__name__
                raise StoreError(f"{uri}: the store refuses this address ({reason}).") from error
            else:
                raise
    check_bytes(len(data), uri)
    return data


def _is_refusal(error: BaseException) -> bool:
    """Whether a store's answer is about the request, so that asking again gives the same: most of 300 to 499.

    Missing objects and missing access are explained elsewhere.
    """
    if isinstance(error, FileNotFoundError | PermissionError | TimeoutError):
        return False
    return any(300 <= status < 500 and status not in AGAIN for status in _statuses(error))


def _statuses(error: BaseException) -> Iterator[int]:
    """HTTP statuses that an exception of botocore, gcsfs or Azure carries."""
    for exception in (error, error.__cause__):
        if isinstance(exception, ClientError):
            yield int(exception.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for name in ("code", "status_code"):
            status = str(getattr(exception, name, ""))
            if status.isdecimal():
                yield int(status)


@contextlib.contextmanager
def path_faults(path: str) -> Iterator[None]:
    """Tell what is wrong with a local path, a FileNotFoundError or RowError, from the faults of a disk."""
    try:
        yield
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    except OSError as error:
        if error.errno not in OF_THE_PATH:
            raise
        shown = path if len(path) <= SHOWN_CHARACTERS else f"{path[:SHOWN_CHARACTERS]}..."
        raise RowError(f"{shown} cannot be opened ({os.strerror(error.errno).lower()}).") from None


def open_regular(path: str) -> io.FileIO:
    """A local file for reading. Pipes, devices and what else has no end are refused, and never waited for.

    Looked at before it is opened, because opening a device may do something; O_NONBLOCK, because a pipe may have taken
    the file's place since, and because some files of /proc wait for what is to come.

    Raises:
        RowError: its path is none that this system takes.
        FileNotFoundError: nothing lies there, or something of another kind.
        OSError: the disk, or this user may not read it.
    """
    with path_faults(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileNotFoundError(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = io.FileIO(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise FileNotFoundError(path)
    return file


def _fetch_local(path: str) -> bytes:
    with explained(path):
        try:
            file = open_regular(path)
        except PermissionError:
            raise RowError(f"{path} may not be read by this user.") from None
        with file:
            size = os.fstat(file.fileno()).st_size  # 0 for files of /proc, some of which never end
            check_bytes(size, path)
            data = bytearray()
            while len(data) < size and (piece := file.read(size - len(data))):
                data += piece
            return bytes(data)


def check_bytes(size: int, what: str) -> None:
    """Raise RowError above MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES:
        raise RowError(f"{what} has more than {MAX_FILE_BYTES >> 30} GiB, the limit of one image or map.")


def check_unchanged(uri: str, etag: str) -> None:
    """Raise RowError where the file is not the version that was planned, FileNotFoundError where it is gone."""
    fs, path = for_input(uri)
    with explained(uri), contextlib.nullcontext() if "://" in uri else path_faults(path):
        found = etag_of(fs.info(path))
    if found != etag:
        raise RowError(
            f"{uri} has changed since it was planned (it was {etag}, now {found}): a new run plans a changed "
            "file; once it is again what it was, plan these rows again with jointdit retry URI --quarantined."
        )
