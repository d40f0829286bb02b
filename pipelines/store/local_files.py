"""List, read, replace and create files of a local folder durably.

A new object is a temporary file that is flushed and then linked or renamed to its name. Then its folder is flushed, and
before that the parent of each new folder. How file systems differ, and what is done:

    link      vfat, exFAT and some FUSE file systems have no hard links and answer EPERM, ENOTSUP, ENOSYS, EINVAL or
              EMLINK: `HardLinksMissing`. A network file system may repeat a request whose answer was lost, and then
              reports EEXIST although it made the link. The link count of the temporary file shows that (see open(2)).
    rename    repeated in the same way, it reports ENOENT: the new name is read back. fsync     of a folder: CIFS and
    others answer EINVAL or EBADF, and flush folders themselves or not at all. Nothing more
              can be done there, so these errors are ignored, as in PostgreSQL. All other errors count.

Only regular files and links to them are objects. Pipes, sockets and devices are never opened, because reading may
block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp-"  # prefix of files that are being written; listings leave them out
FOLDER_ATTEMPTS = 100
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EMLINK)
NO_FOLDER_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# Every folder that this system creates matches. `lost+found`, `.snapshot`, `$RECYCLE.BIN` or `@eaDir` do not.
POSSIBLE_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class HardLinksMissing(Exception):
    """The file system has no hard links. The message is its error code."""


class NotRegular(OSError):
    """A folder, a pipe, a socket, a device, or a broken link."""


def walk(folder: str, everything: bool = False) -> Iterator[str]:
    """Yield the paths of the regular files under a folder, in no order. Links to files count, links to folders do not.

    A folder that this user may not list is an error, unless this system never creates a folder of its name.

    Args:
        everything: also yield other entries, and "path/" for a folder that is empty or may not be listed.
    """
    pending = [folder]
    while pending:
        current = pending.pop()
        is_empty = True
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    is_empty = False
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif everything or _is_regular(entry):
                        yield entry.path
        except FileNotFoundError:
            continue  # removed since its parent was listed
        except PermissionError:
            if current == folder or POSSIBLE_FOLDER.fullmatch(os.path.basename(current)):
                raise
        if everything and is_empty and current != folder:
            yield f"{current}/"


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a circular link, or a link through a folder that may not be entered
        return False


def stat_file(path: str) -> os.stat_result:
    """Return size and times of a regular file. Raises FileNotFoundError, also for other entries."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
    return status


def open_file(path: str) -> BinaryIO:
    """Open a regular file for reading. Raises NotRegular for anything else, without opening it."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotRegular(path)
    return open(path, "rb")


@contextlib.contextmanager
def temporary_file(final: Path, data: bytes) -> Iterator[Path]:
    """Write `data` durably to a temporary name beside `final`. The file is removed at the end unless it was renamed."""
    temporary = final.parent / f"{TEMPORARY}{secrets.token_hex(8)}-{final.name}"
    try:
        with _open_new(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # the object is written; garbage collection removes the rest
            temporary.unlink()


def final_name(temporary: str) -> str:
    """Return the name that a temporary file was to get."""
    folder, _, name = temporary.rpartition("/")
    return f"{folder}/{name.removeprefix(TEMPORARY).partition('-')[2]}"


def link(temporary: Path, final: Path) -> None:
    """Link a temporary file to its name if that is free.

    Raises:
        FileExistsError: another file has the name.
        NotRegular: the name is taken by something that is no file and that no writer of this system created.
        HardLinksMissing: nothing was done.
    """
    try:
        os.link(temporary, final)
    except OSError as error:
        if os.stat(temporary).st_nlink > 1:
            return  # the link was made, and its repetition failed
        if isinstance(error, FileExistsError) and not final.is_file():
            raise NotRegular(str(final)) from None
        if error.errno in NO_HARD_LINKS:
            raise HardLinksMissing(errno.errorcode[error.errno]) from None
        raise


def rename(temporary: Path, final: Path, data: bytes) -> None:
    """Rename a temporary file with these bytes to its name, replacing a file of that name."""
    try:
        os.replace(temporary, final)
    except FileNotFoundError:
        if final.read_bytes() != data:  # else it was renamed, and the repetition of the request failed
            raise


def flush_folder(folder: Path) -> bool:
    """Flush the names in a folder. Returns False if the file system does not support that, or this user may not."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return False  # a folder with write access and without read access
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_FLUSH:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def _open_new(path: Path) -> BinaryIO:
    """Create a file and its folder. The folder is created again if another process removed it because it was empty."""
    for _ in range(FOLDER_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            _make_folder(path.parent)
            return path.open("xb")
    raise FileNotFoundError(errno.ENOENT, "its folder is removed again and again", str(path))


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents. The entry of each new folder is flushed, so that it survives a power cut."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if missing:
        missing[0].mkdir(parents=True, exist_ok=True)
        for made in reversed(missing):
            flush_folder(made.parent)
