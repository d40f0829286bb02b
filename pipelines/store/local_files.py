"""Files of a local folder: listed, read, replaced and created so that neither a power cut nor a strange file harms.

A new object is a temporary file that is flushed, then linked or renamed to its name; then its folder is flushed, and
before that the parent of each folder that was made for it. What file systems make of these calls, and what is done:

    link      vfat, exFAT and some FUSE file systems have no hard links and answer EPERM, ENOTSUP, ENOSYS, EINVAL or
              EMLINK: `HardLinksMissing`. A network file system may repeat a request whose answer was lost, and then
              reports EEXIST although it made the link: the link count of the temporary file tells, as open(2) says.
    rename    repeated in the same way, it reports ENOENT: the new name is read back.
    fsync     of a folder: CIFS and others answer EINVAL or EBADF and flush folders themselves or not at all; nothing
              more can be done there, so these are passed over, as PostgreSQL does. Every other failure counts.

Only regular files and links to them are objects. Pipes, sockets and devices are never opened: reading them may hang.
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

TEMPORARY = ".tmp-"  # files being written; listings leave them out
FOLDER_ATTEMPTS = 100
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EMLINK)
NO_FOLDER_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# Every folder that this system makes has such a name. `lost+found`, `.snapshot`, `$RECYCLE.BIN` or `@eaDir` have not.
POSSIBLE_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class HardLinksMissing(Exception):
    """The file system has no hard links; the message is its answer."""


class NotRegular(OSError):
    """A folder, a pipe, a socket, a device, or a link that leads to no file."""


def walk(folder: str, everything: bool = False) -> Iterator[str]:
    """Paths of the regular files under a folder, in no order. Links to files count, links to folders are not followed.

    A folder that this user may not list is an error, unless it has a name that this system never gives.

    everything: also what is no regular file, and "path/" for a folder that is empty or may not be listed.
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
    except OSError:  # a link in a circle, or through a folder that may not be entered
        return False


def stat_file(path: str) -> os.stat_result:
    """Size and times of a regular file. Raises FileNotFoundError, also for what is no file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
    return found


def open_file(path: str) -> BinaryIO:
    """A regular file, to be read. Raises NotRegular for anything else, without opening it."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotRegular(path)
    return open(path, "rb")


@contextlib.contextmanager
def temporary_file(final: Path, data: bytes) -> Iterator[Path]:
    """`data`, safely on disk under a temporary name beside `final`; removed at the end unless it was renamed."""
    temporary = final.parent / f"{TEMPORARY}{secrets.token_hex(8)}-{final.name}"
    try:
        with _open_new(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # what was written stands; garbage collection finds the rest
            temporary.unlink()


def final_name(temporary: str) -> str:
    """The name that a temporary file was to have."""
    folder, _, name = temporary.rpartition("/")
    return f"{folder}/{name.removeprefix(TEMPORARY).partition('-')[2]}"


def link(temporary: Path, final: Path) -> None:
    """Give a temporary file its name if that is free.

    Raises:
        FileExistsError: another file has the name.
        NotRegular: something that is no file has the name, and no writer of ours put it there.
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
    """Give a temporary file of these bytes its name, replacing what has it."""
    try:
        os.replace(temporary, final)
    except FileNotFoundError:
        if final.read_bytes() != data:  # else it was renamed, and the repetition of the request failed
            raise


def flush_folder(folder: Path) -> bool:
    """Flush the names in a folder; False where the file system does not do that, or this user may not."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return False  # a folder that may be written and not read
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
    """A new file, its folder made; made again where another process has just removed it because it was empty."""
    for _ in range(FOLDER_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            _make_folder(path.parent)
            return path.open("xb")
    raise FileNotFoundError(errno.ENOENT, "its folder is removed again and again", str(path))


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; the entry of each new one is flushed, so that no power cut takes it away."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if missing:
        missing[0].mkdir(parents=True, exist_ok=True)
        for made in reversed(missing):
            flush_folder(made.parent)
