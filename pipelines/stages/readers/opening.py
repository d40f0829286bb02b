"""Open input files as seekable streams that tell faults of the store from damage.

Decoders (Arrow, zlib, tarfile, Pillow) report damaged data as OSError, and so do networks. Reading through `open_input`
separates them: a fault of the store is no OSError any more when the decoder's caller sees it, so an OSError is damage.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from jointdit.errors import RowError, StoreError
from pipelines.store.explain import explained, store_code, store_exceptions
from pipelines.store.safe_text import reason_of, shortened
from pipelines.store.storage import etag_of, for_input

FIRST_BYTES = 1 << 16  # that the first request of a pass reads
BUFFER_BYTES = 4 << 20  # that a request reads at most
MAX_FILE_BYTES = 1 << 30  # of one encoded image, map or archive member; MAX_PIXELS of float64 are 0.64e9 bytes
UNPACKING_FILES = 4  # .gz files that a process keeps open
SKIPPED_BYTES = 2 << 20  # a request takes about as long as reading these
AGAIN = (408, 409, 425, 429)  # HTTP statuses below 500 that are worth a retry
OF_THE_PATH = (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP)


class _StoreFile(io.RawIOBase):
    """A file of fsspec whose store exceptions are explained. Each read is one request.

    With `reads_ahead`, a read may give fewer bytes than were asked for. It ends at `until` if that is known. Otherwise
    the first read is short, and each read that follows soon after the one before it is twice as long, so that a few
    rows cost little and a long pass takes few requests.
    """

    def __init__(self, uri: str, reads_ahead: bool) -> None:
        self._uri, self._reads_ahead = uri, reads_ahead
        self.until: int | None = None
        self._end, self._ahead = 0, FIRST_BYTES // 2  # where the last read ended, and its most bytes
        fs, path = for_input(uri)
        with explained(uri):
            self._file: Any = fs.open(path, "rb", cache_type="none") if "://" in uri else open_regular(path)

    def readinto(self, buffer: Any) -> int:
        if self._reads_ahead:
            buffer = memoryview(buffer)[: self._next_bytes()]
        with explained(self._uri):
            count = self._file.readinto(buffer)
        if count is None:
            raise RowError(f"{self._uri} is no ordinary file, reading it would not end: take it out of the input.")
        self._end = self.tell()
        return int(count)

    def _next_bytes(self) -> int:
        position = self.tell()
        if self.until is not None and position < self.until:
            return self.until - position
        continues = 0 <= position - self._end < SKIPPED_BYTES
        self._ahead = min(2 * self._ahead, BUFFER_BYTES) if continues else FIRST_BYTES
        return self._ahead

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
    """Open a file as a buffered binary stream that reads ahead, or with `random_access` only what is asked for.

    Raises FileNotFoundError, StoreError or TransientError, here and while it is read.
    """
    file = _StoreFile(uri, reads_ahead=not random_access)
    return cast(BinaryIO, file) if random_access else io.BufferedReader(file, BUFFER_BYTES)


def read_until(stream: object, offset: int | None) -> None:
    """Let a stream of `open_input` read ahead only to an offset, None for any. Has no effect on other streams."""
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, _StoreFile):
        stream.raw.until = offset


_unpacking: OrderedDict[tuple[str, str], gzip.GzipFile] = OrderedDict()  # by (uri, etag), the last used at the end


@contextlib.contextmanager
def open_text(uri: str, etag: str) -> Iterator[BinaryIO]:
    """Like `open_input`, and decompresses .gz files. `etag` is the version of the file.

    A .gz file cannot be entered in the middle. So a process keeps the last ones open where reading ended, and the next
    shard of the file goes on from there.
    """
    if not uri.lower().endswith(".gz"):
        with open_input(uri) as stream:
            yield stream
        return
    unpacked = _unpacking.pop((uri, etag), None)
    if unpacked is None:
        packed = open_input(uri)
        unpacked = gzip.GzipFile(fileobj=packed, mode="rb")
        unpacked.myfileobj = cast(io.FileIO, packed)  # so that close() closes it
    try:
        yield cast(BinaryIO, unpacked)
    except Exception:
        unpacked.close()
        raise
    _unpacking[uri, etag] = unpacked
    while len(_unpacking) > UNPACKING_FILES:
        _unpacking.popitem(last=False)[1].close()


def fetch(uri: str) -> bytes:
    """Return the whole file.

    Raises:
        RowError: it has more than MAX_FILE_BYTES, or cannot be opened on the local disk.
        FileNotFoundError, StoreError, TransientError: it does not exist, or the store fails.
    """
    fs, path = for_input(uri)
    if "://" not in uri:
        return _fetch_local(path)
    with explained(uri):
        try:
            data: bytes = fs.cat_file(path, start=0, end=MAX_FILE_BYTES + 1)
        except store_exceptions() as error:
            if store_code(error) == "InvalidRange":  # the answer of S3 to any range of an empty object
                data = b""
            elif _is_refusal(error):
                raise StoreError(f"{uri}: the store refuses this address ({reason_of(error)}).") from error
            else:
                raise
    check_bytes(len(data), uri)
    return data


def _is_refusal(error: BaseException) -> bool:
    """Return whether a store's answer is about the request, so that a retry gets the same: most statuses of 300 to 499.

    Missing objects and missing access are explained elsewhere.
    """
    if isinstance(error, FileNotFoundError | PermissionError | TimeoutError):
        return False
    return any(300 <= status < 500 and status not in AGAIN for status in _statuses(error))


def _statuses(error: BaseException) -> Iterator[int]:
    """Yield the HTTP statuses that an exception of botocore, gcsfs or Azure carries."""
    for exception in (error, error.__cause__):
        if isinstance(exception, ClientError):
            yield int(exception.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for name in ("code", "status_code"):
            status = str(getattr(exception, name, ""))
            if status.isdecimal():
                yield int(status)


@contextlib.contextmanager
def path_faults(path: str) -> Iterator[None]:
    """Turn errors about a local path into FileNotFoundError or RowError; faults of the disk pass."""
    try:
        yield
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    except OSError as error:
        if error.errno not in OF_THE_PATH:
            raise
        raise RowError(f"{shortened(path)} cannot be opened ({os.strerror(error.errno).lower()}).") from None


def open_regular(path: str) -> io.FileIO:
    """Open a local file for reading. Pipes, devices and other endless files are refused without blocking.

    The file type is checked before opening, because opening a device may have effects. O_NONBLOCK is set because a pipe
    may have replaced the file since, and because some files of /proc block.

    Raises:
        RowError: the path is not valid on this system.
        FileNotFoundError: nothing exists there, or something of another kind.
        OSError: the disk fails, or this user may not read it.
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


def check_bytes(size: int, name: str) -> None:
    """Raise RowError above MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES:
        raise RowError(f"{name} has more than {MAX_FILE_BYTES >> 30} GiB, the limit of one image or map.")


def check_unchanged(uri: str, etag: str) -> None:
    """Raise RowError where the file is not the version that was planned, FileNotFoundError where it does not exist."""
    fs, path = for_input(uri)
    with explained(uri), contextlib.nullcontext() if "://" in uri else path_faults(path):
        current = etag_of(fs.info(path))
    if current != etag:
        raise RowError(
            f"{uri} has changed since it was planned (it was {etag}, now {current}): a new run plans a changed "
            "file; if you restore it, plan these rows again with jointdit retry URI --quarantined."
        )
